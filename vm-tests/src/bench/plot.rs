//! The numbers of a run as one SVG: a group of bars for each measurement, each bar a ratio to nginx.
//! Drawn by hand, since all that is needed is rectangles and text.
//! Invariant: shows medians of one run, and names the machine and the build.

use std::fmt::Write as _;

use super::report::{Report, System};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 250.0;
const BAR: f64 = 12.0;
const GAP: f64 = 16.0;
/// The longest bar; longer ones are cut there and say their number.
const MOST: f64 = 3.0;

/// The plot of everything that nginx took part in.
pub(super) fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 60.0;
    for row in report.rows() {
        let Some(base) = report
            .median(System::Nginx, &row)
            .filter(|base| *base > 0.0)
        else {
            continue;
        };
        text(
            &mut body,
            10.0,
            y + BAR,
            13,
            &format!("{} (nginx {})", row.title, row.number(base)),
        );
        for (system, colour) in COLOURS {
            let Some(value) = report.median(system, &row) else {
                continue;
            };
            let ratio = value / base;
            let long = ratio.min(MOST) / MOST * (WIDTH - LEFT - 120.0);
            // NOTE: writing to a String cannot fail.
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y:.0}" width="{long:.1}" height="{BAR}" fill="{colour}"/>"#
            );
            let said = format!("{} {ratio:.2}", system.name());
            text(&mut body, LEFT + long + 6.0, y + BAR - 2.0, 10, &said);
            y += BAR + 2.0;
        }
        y += GAP;
    }
    let height = y + 20.0;
    let nginx = LEFT + (WIDTH - LEFT - 120.0) / MOST;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}" font-family="sans-serif">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="10" y="24" font-size="16">Ratios to nginx (1.00), medians of one run</text>
<text x="10" y="42" font-size="11">{}</text>
<line x1="{nginx:.1}" x2="{nginx:.1}" y1="52" y2="{height:.0}" stroke="#999999"/>
{body}</svg>
"##,
        escaped(&report.heading())
    )
}

const COLOURS: [(System, &str); 6] = [
    (System::Direct, "#bbbbbb"),
    (System::Relay, "#999999"),
    (System::Haproxy, "#8da0cb"),
    (System::Sluice, "#d95f02"),
    (System::SluiceGrouped, "#fdae6b"),
    (System::SluiceLarge, "#a63603"),
];

fn text(body: &mut String, x: f64, y: f64, size: u8, said: &str) {
    let _ = writeln!(
        body,
        r#"<text x="{x:.1}" y="{y:.1}" font-size="{size}">{}</text>"#,
        escaped(said)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
