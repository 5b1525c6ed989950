//! `sluice run` as root gives each agent a uid of its own, unless a user is named.

use std::os::unix::fs::MetadataExt as _;

use crate::stage;

#[test]
fn an_agent_that_root_starts_runs_under_a_uid_of_its_own() {
    let stage = stage();
    let as_whom = |args: &[&str]| {
        let mut all = vec!["run", "--agent", "acme/support"];
        all.extend(args);
        stage.instance.ask(&all).unwrap()
    };
    // The control: who names root gets root, and is warned.
    let root = as_whom(&["--user", "root", "--", "id", "-u"]);
    assert_eq!(root.stdout.trim(), "0", "{root}");
    assert!(root.stderr.contains("uid 0"), "{root}");

    let own = as_whom(&[
        "--",
        "sh",
        "-c",
        "id -u; id -g; id -G; echo $HOME; echo $TMPDIR",
    ]);
    let lines: Vec<&str> = own.stdout.lines().collect();
    let uid: u32 = lines[0].parse().unwrap();
    assert!((70_000..=79_999).contains(&uid), "{own}");
    assert_eq!(lines[1..3], [lines[0], lines[0]], "no other group: {own}");
    assert!(!own.stderr.contains("uid 0"), "{own}");
    let home = std::fs::metadata(lines[3]).unwrap();
    assert_eq!((home.uid(), home.mode() & 0o777), (uid, 0o700));
    assert!(lines[4].starts_with(lines[3]), "{own}");

    // It may write there and nowhere of root's, and finds it again.
    let wrote = as_whom(&[
        "--",
        "sh",
        "-c",
        "echo kept > $HOME/note && touch $TMPDIR/x && touch /etc/sluice-test",
    ]);
    assert!(wrote.stderr.contains("/etc/sluice-test"), "{wrote}");
    let again = as_whom(&["--", "sh", "-c", "id -u; cat $HOME/note"]);
    assert_eq!(again.stdout, format!("{uid}\nkept\n"), "{again}");
}
