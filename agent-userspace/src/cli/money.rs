//! An amount in minor units with its currency, as a person reads it: `12000 usd` is `120.00 USD`.
//! For approvers, who have seconds and must not count zeros.
//! INVARIANT: the raw params are always shown as well; a currency that is not in the list is not converted.

use std::collections::BTreeMap;

use policies::Value;

/// ISO 4217 currencies of the vendors' APIs by their number of minor digits.
const NONE: [&str; 16] = [
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV",
    "XAF", "XOF", "XPF",
];
const THREE: [&str; 7] = ["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"];
const TWO: [&str; 30] = [
    "AED", "AUD", "BRL", "CAD", "CHF", "CNY", "CZK", "DKK", "EGP", "EUR", "GBP", "HKD", "HUF",
    "IDR", "ILS", "INR", "MXN", "MYR", "NOK", "NZD", "PHP", "PLN", "RON", "SAR", "SEK", "SGD",
    "THB", "TRY", "USD", "ZAR",
];

/// The amount in words, if the params have an integer `amount` and a known `currency`.
pub(super) fn amount(params: &BTreeMap<String, Value>) -> Option<String> {
    let (Value::Integer(amount), Value::Text(currency)) =
        (params.get("amount")?, params.get("currency")?)
    else {
        return None;
    };
    let code = currency.to_ascii_uppercase();
    let digits = digits(&code)?;
    let sign = if *amount < 0 { "-" } else { "" };
    let amount = amount.unsigned_abs();
    let unit = 10_u64.pow(digits);
    let whole = amount / unit;
    Some(match digits {
        0 => format!("{sign}{whole} {code}"),
        _ => format!(
            "{sign}{whole}.{:0width$} {code}",
            amount % unit,
            width = digits as usize
        ),
    })
}

/// What is said beside an integer `amount` that comes without a `currency`: its digits are not what they seem.
pub(super) fn unpriced(params: &BTreeMap<String, Value>) -> Option<&'static str> {
    let raw = matches!(params.get("amount"), Some(Value::Integer(_)));
    (raw && !params.contains_key("currency")).then_some("(minor units; currency not given)")
}

/// The amount for a column: in words, else raw with a warning.
pub(super) fn column(params: &BTreeMap<String, Value>) -> Option<String> {
    amount(params).or_else(|| match (params.get("amount"), unpriced(params)) {
        (Some(Value::Integer(raw)), Some(note)) => Some(format!("{raw} {note}")),
        _ => None,
    })
}

fn digits(code: &str) -> Option<u32> {
    if TWO.contains(&code) {
        Some(2)
    } else if NONE.contains(&code) {
        Some(0)
    } else if THREE.contains(&code) {
        Some(3)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: i64, currency: &str) -> Option<String> {
        let params = [
            ("amount", Value::Integer(value)),
            ("currency", Value::Text(currency.to_owned())),
        ];
        amount(
            &params
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    #[test]
    fn minor_units_become_money() {
        assert_eq!(shown(12_000, "usd").as_deref(), Some("120.00 USD"));
        assert_eq!(shown(5, "eur").as_deref(), Some("0.05 EUR"));
        assert_eq!(shown(12_000, "jpy").as_deref(), Some("12000 JPY"));
        assert_eq!(shown(12_345, "kwd").as_deref(), Some("12.345 KWD"));
        assert_eq!(shown(-150, "usd").as_deref(), Some("-1.50 USD"));
        assert_eq!(
            shown(i64::MIN, "usd").as_deref(),
            Some("-92233720368547758.08 USD")
        );
    }

    #[test]
    fn an_unknown_currency_is_left_alone() {
        assert_eq!(shown(12_000, "doubloons"), None);
        assert_eq!(amount(&BTreeMap::new()), None);
    }

    #[test]
    fn an_amount_without_a_currency_is_called_raw() {
        let mut params = BTreeMap::from([("amount".to_owned(), Value::Integer(12_000))]);
        let raw = "12000 (minor units; currency not given)";
        assert_eq!(column(&params).as_deref(), Some(raw));
        // Positive control: with a currency it is money, and nothing needs to be said.
        params.insert("currency".to_owned(), Value::Text("usd".to_owned()));
        assert_eq!(column(&params).as_deref(), Some("120.00 USD"));
        assert_eq!(unpriced(&params), None);
        assert_eq!(column(&BTreeMap::new()), None);
    }
}
