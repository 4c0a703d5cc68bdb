//! What is said about mistakes: every one of them, its exact place, and the words.

use super::*;
use crate::policy::Severity;

/// `line:column severity message | help`, for each finding in these texts.
fn said(texts: &[&str]) -> Vec<String> {
    let bytes: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
    let diagnostics = match read(&bytes) {
        Ok(loaded) => loaded.warnings,
        Err(error) => error.diagnostics,
    };
    let line = |it: &crate::policy::Diagnostic| {
        let severity = match it.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        let file = it.file.display().to_string();
        let file = if texts.len() > 1 {
            format!("{file}:")
        } else {
            String::new()
        };
        let at = it
            .position
            .as_ref()
            .map_or(String::new(), |at| format!("{}:{} ", at.line, at.column));
        let help = it.help().map_or(String::new(), |help| format!(" | {help}"));
        format!("{file}{at}{severity}{}{help}", it.message())
    };
    diagnostics.iter().map(line).collect()
}

/// As `said`, for a rule of which these lines are part; without what its good parts give rise to.
fn in_rule(lines: &str) -> Vec<String> {
    let rule = "name = \"r\"\nuser = \"bob\"\ninterface = \"eth0\"\nqueues = \"2\"\nsockets = [\"prepared\"]";
    let key = |line: &str| line.split([' ', '=']).next().unwrap_or_default().to_owned();
    let given: Vec<String> = lines.lines().map(key).collect();
    let rest = rule.lines().filter(|line| !given.contains(&key(line)));
    let rest = rest.collect::<Vec<_>>().join("\n");
    said(&[&format!(
        "[[allow]]\n{lines}\n{rest}\n[interface.eth0]\nqueue-lock = \"none\"\n"
    )])
}

#[test]
fn a_whole_report() {
    let text = "[interface.eth0]\nqueue-lock = \"none\"\n\n[[allow]]\nname = \"tenant-alice\"\nuser = \"alice\"\n\
                interface = \"eth0\"\nqueue = \"2-4\"\nsockets = [\"prepared\"]\n";
    let Err(error) = read(&[text.as_bytes()]) else {
        panic!("it was read");
    };
    assert_eq!(
        error.to_string(),
        "\
error: [[allow]] without `queues`
 --> p0.toml:4:1
  |
4 | [[allow]]
  | ^^^^^^^^^
  = help: add `queues = \"2-4\"`

error: unknown key `queue` in [[allow]]
 --> p0.toml:8:1
  |
8 | queue = \"2-4\"
  | ^^^^^
  = help: did you mean `queues`?"
    );
}

#[test]
fn every_mistake_in_every_file() {
    let first = "[interface.eth0]\nxpd = \"native\"\nqueue-lock = \"none\"\nreserved = 3\nuplink = \"true\"\n\n\
                 [[allow]]\nname = \"x\"\nqueues = 2-4\nsockets = \"prepared\"\n";
    let second = "[[deny]]\nname = \"x y\"\nuser = \"alice\"\ninterface = \"eth0:1\"\n[[allow]]\nname = \"x\"\n\
                  [[alow]]\n[interface.eth0]\nqueue-lock = \"none\"\n";
    assert_eq!(
        said(&[first, second]),
        [
            "p0.toml:2:1 unknown key `xpd` in [interface.NAME] | did you mean `xdp`?",
            "p0.toml:4:12 `reserved` is an integer, where a string is expected | write `reserved = \"3\"`",
            "p0.toml:5:10 `uplink` is a string, where true or false is expected | write `uplink = true`",
            // What seems to be missing in a file that is no TOML is not reported.
            "p0.toml:9:10 the value of `queues` is not in quotes | write `queues = \"2-4\"`",
            "p1.toml:2:8 `x y` is no name for a rule | 1 to 64 letters, digits, `-`, `_` and `.`",
            "p1.toml:4:13 `eth0:1` is no interface name | 1 to 15 bytes, no `/`, `:` or white space; or a pattern, \
             as in \"eth*\"",
            "p1.toml:5:1 [[allow]] does not say for whom | add user = \"alice\", or group = \"kvm\", or user = \"*\" \
             for everybody",
            "p1.toml:5:1 [[allow]] without `interface` | add `interface = \"eth0\"`",
            "p1.toml:5:1 [[allow]] without `queues` | add `queues = \"2-4\"`",
            "p1.toml:5:1 [[allow]] without `sockets` | add `sockets = [\"prepared\"]`",
            "p1.toml:6:8 a rule is called `x` already, at p0.toml:8 | give each rule a name of its own: the log \
             tells them apart by it",
            "p1.toml:7:3 unknown key `alow` in a policy file | did you mean `allow`?",
        ]
    );
    let twice = "[interface.eth0]\nqueue-lock = \"none\"\n";
    assert_eq!(
        said(&[twice, twice])[0],
        "p1.toml:1:12 [interface.eth0] is there already, at p0.toml:1 | join the two"
    );
}

#[test]
fn mistakes_in_rules() {
    let whom = "each entry of `user` and `group` adds people, none takes any away";
    for (lines, expected) in [
        (
            "name = \"\"",
            "2:8 `` is no name for a rule | 1 to 64 letters, digits, `-`, `_` and `.`",
        ),
        (
            "name = 7",
            "2:8 `name` is an integer, where a string is expected | write `name = \"7\"`",
        ),
        (
            "user = [\"alice\", \"*\"]",
            &format!(
                "2:18 `user = \"*\"` is everybody already, so the others beside it change nothing | leave out \"*\", \
                 or everything else: {whom}"
            ),
        ),
        (
            "user = \"*\"\ngroup = \"kvm\"",
            &format!(
                "2:8 `user = \"*\"` is everybody already, so the others beside it change nothing | leave out \"*\", \
                 or everything else: {whom}"
            ),
        ),
        (
            "group = \"*\"",
            "2:9 there is no `group = \"*\"` | everybody is `user = \"*\"`",
        ),
        ("user = 4294967295", "2:8 `4294967295` is no id of a user"),
        ("user = -1", "2:8 `-1` is no id of a user"),
        ("group = \"99999999999\"", "2:9 `99999999999` is no id of a group"),
        ("user = \"a:b\"", "2:8 `a:b` is no user name"),
        (
            "user = [\"bob\", true]",
            "2:16 `user` is a boolean, where a name or a number is expected",
        ),
        ("user = [\"bob\", \"bob\"]", "2:16 bob is given twice in `user`"),
        (
            "user = []",
            "2:8 `user` is an empty list | add user = \"alice\", or group = \"kvm\", or user = \"*\" for everybody",
        ),
        (
            "interface = []",
            "2:13 `interface` is an empty list | name an interface, or \"*\" for all that have a section",
        ),
        (
            "interface = [\"eth0\", \"eth0\"]",
            "2:22 eth0 is given twice in `interface`",
        ),
        (
            "interface = \"eth[0\"",
            "2:13 `eth[0` is no pattern for interfaces: unclosed character class; missing ']'",
        ),
        (
            "interface = \"é*\"",
            "2:13 `é*` is no pattern for interfaces: at most 64 ASCII characters, no `/`, `:` or white space",
        ),
        (
            "queues = \"4-2\"",
            "2:10 the range 4-2 runs backwards | write 2-4",
        ),
        ("queues = \"2,3,2\"", "2:10 queue 2 is given twice"),
        (
            "queues = \"2, 3\"",
            "2:10 ` 3` is neither a queue id nor a range | write ids and ranges with commas and without spaces, as in \
             \"2-4,7\"; or \"*\" for all",
        ),
        (
            "queues = \"\"",
            "2:10 a queue id is missing | write ids and ranges with commas, as in \"2-4,7\"",
        ),
        (
            "sockets = \"prepard\"",
            "2:11 `prepard` is not a value of `sockets` | did you mean `prepared`?",
        ),
        (
            "sockets = []",
            "2:11 `sockets` is an empty list | write `sockets = [\"prepared\"]`",
        ),
        (
            "limits = 3",
            "2:10 `limits` is an integer, where a table is expected",
        ),
        (
            "limits = { queues = 0 }",
            "2:21 `queues` is 0, it must be 1 to 65536",
        ),
        (
            "limits = { queues = \"2\" }",
            "2:21 `queues` is a string, where an integer is expected | write `queues = 2`",
        ),
        (
            "limits = { ring-entries = 3000 }",
            "2:27 `ring-entries` is 3000, it must be a power of two as the kernel's rings are | write 2048 or 4096",
        ),
        (
            "limits = { ring_entries = 2048 }",
            "2:12 unknown key `ring_entries` in limits | did you mean `ring-entries`?",
        ),
        (
            "activate-within-ms = 99999999999999999999",
            "2:22 `activate-within-ms` is 99999999999999999999, it must be 100 to 600000",
        ),
        (
            "insert = \"at-bind\"",
            "2:10 `at-bind` is not a value of `insert` | one of `when-bound`, `at-grant`",
        ),
        (
            "zero-copy = \"require\"",
            "2:13 `require` is not a value of `zero-copy` | did you mean `required`?",
        ),
        (
            "zero-copy = true",
            "2:13 `zero-copy` is a boolean, where a string is expected",
        ),
        ("transfer-to = [1000, \"*\"]", "2:22 `*` is no user name"),
    ] {
        assert_eq!(in_rule(lines), [expected], "{lines}");
    }
}

#[test]
fn mistakes_in_sections_and_tables() {
    for (text, expected) in [
        (
            "[interface.eth0]\nqueue-lock = \"nnone\"",
            String::from("2:14 `nnone` is not a value of `queue-lock` | did you mean `none`?"),
        ),
        (
            "[interface.eth0.100]\nqueue-lock = \"none\"",
            "1:17 a name with a dot was not quoted | TOML takes the dot as a separator: write \
             [interface.\"eth0.100\"]"
                .into(),
        ),
        (
            "[interface.eth*]\nqueue-lock = \"none\"",
            "1:15 the name of the interface is not in quotes | patterns, and names with other than letters, digits, \
             `-` and `_`: [interface.\"eth*\"]"
                .into(),
        ),
        (
            "[interface]\neth0 = 1",
            "2:1 `eth0` is a value, where a device's table, as in [interface.eth0] is expected".into(),
        ),
        (
            "[[interface]]\n",
            "1:3 [[interface]] is a list, devices are named tables | write [interface.eth0], with one pair of \
             brackets"
                .into(),
        ),
        (
            "[deny]\nname = \"x\"",
            "1:2 [deny] is a single table, where rules are a list of them | write [[deny]], with two brackets".into(),
        ),
        ("allow = 1", "1:1 `allow` is an integer, where a list of rules is expected".into()),
        ("allow = [1]", "1:10 `allow` is an integer, where a table is expected".into()),
        (
            "[interface.eth0]\nxdp = natve\nqueue-lock = \"none\"",
            "2:7 the value of `xdp` is not in quotes | write `xdp = \"natve\"`".into(),
        ),
        (
            "[interface.eth0]\nqueue-lock = \"none\"\n[interface.eth0]\nqueue-lock = \"none\"",
            "3:12 given twice".into(),
        ),
        ("\u{feff}x = 1", "1:1 unknown key `x` in a policy file | one of `interface`, `limits`, `allow`, `deny`".into()),
    ] {
        assert_eq!(said(&[text]), [expected], "{text}");
    }
}

#[test]
fn mistakes_in_limits() {
    for (text, expected) in [
        (
            "[limits]\nqueues = 3",
            "2:1 unknown key `queues` in [limits] | one of `per-user`, `in-all`",
        ),
        (
            "[limits.per_user]\nqueues = 3",
            "1:9 unknown key `per_user` in [limits] | did you mean `per-user`?",
        ),
        (
            "[limits.per-user]\nconection = 3",
            "2:1 unknown key `conection` in [limits.per-user] | did you mean `connections`?",
        ),
        (
            "[limits.in-all]\nunread-fds = 0",
            "2:14 `unread-fds` is 0, it must be 1 to 16777216",
        ),
        (
            "[limits.in-all]\numem-bytes = \"1 GiB\"",
            "2:14 `umem-bytes` is a string, where an integer is expected",
        ),
        (
            "limits = 3",
            "1:1 `limits` is an integer, where a table is expected",
        ),
    ] {
        assert_eq!(said(&[text]), [expected], "{text}");
    }
    let per_user = "[limits.per-user]\nqueues = 3\n";
    let in_all = "[limits.in-all]\nqueues = 3\n[interface.eth0]\n";
    assert_eq!(
        said(&[per_user, in_all]),
        ["p1.toml:1:2 [limits] are there already, at p0.toml:1 | join the two"]
    );
}

#[test]
fn what_is_no_text() {
    let Err(error) = read(&[b"yy = 1\n# \xc3\xa4\nxx = \"\xff\"\nzz = 1\n"]) else {
        panic!("it was read");
    };
    // What follows is not looked at.
    assert_eq!(error.diagnostics.len(), 2);
    let at = error.diagnostics[1].position.as_ref().unwrap();
    assert_eq!((at.line, at.column), (3, 7));
    assert_eq!(error.diagnostics[1].message(), "not UTF-8 from here on");
}

#[test]
fn warnings() {
    assert_eq!(
        said(&[""]),
        [
            "warning: no [[allow]] rule: this policy grants nothing to anybody",
            "warning: no [interface.NAME] section: this policy touches no device",
        ]
    );
    let never = "never matches until there is one";
    assert_eq!(
        in_rule("user = \"dave\"\ngroup = \"games\"\ninterface = [\"eth1\", \"wlan0\", \"ens*\"]"),
        [
            "2:8 warning: no user `dave` on this machine: never matches here | make the user in /etc/passwd, then reload the policy; \
             if a directory service has it, write its number, or restart the broker, which asks there at its start"
                .to_owned(),
            "3:9 warning: no group `games` on this machine: never matches here | make the group in /etc/group, then reload the policy; \
             if a directory service has it, write its number, or restart the broker, which asks there at its start"
                .to_owned(),
            "4:14 warning: no [interface] section names eth1: this rule never grants there | add [interface.eth1]"
                .to_owned(),
            format!("4:22 warning: no interface wlan0 here now: {never}"),
            "4:22 warning: no [interface] section names wlan0: this rule never grants there | add [interface.wlan0]"
                .to_owned(),
            format!("4:31 warning: no interface that matches ens* here now: {never}"),
        ]
    );
    let reserved = "[interface.eth0]\nqueue-lock = \"none\"\nreserved = \"0-3\"\n[[allow]]\nname = \"r\"\n\
                    user = \"bob\"\ninterface = \"eth0\"\nqueues = \"2-3\"\nsockets = \"prepared\"\n";
    assert_eq!(
        said(&[reserved]),
        ["7:13 warning: all of queues 2-3 are reserved on eth0: this rule never grants there"]
    );
    let generic = "[interface.eth0]\nqueue-lock = \"none\"\nxdp = \"generic\"\n[[allow]]\nname = \"r\"\n\
                   user = \"bob\"\ninterface = \"eth0\"\nqueues = \"2-3\"\nsockets = \"prepared\"\n\
                   zero-copy = \"required\"\n";
    assert_eq!(
        said(&[generic]),
        [
            "7:13 warning: eth0 has `xdp = \"generic\"`, where there is no zero-copy: this rule never grants there | write \
             `xdp = \"native\"` in [interface.eth0], or leave out `zero-copy`"
        ]
    );
    assert!(said(&[&generic.replace("\"required\"", "\"forbidden\"")]).is_empty());
}

#[test]
fn warnings_of_what_this_machine_never_has() {
    let beyond = "[interface.\"eth0.100\"]\nqueue-lock = \"none\"\n[[allow]]\nname = \"r\"\nuser = \"bob\"\n\
                  interface = \"eth0.100\"\nqueues = \"2-5\"\nsockets = \"prepared\"\n";
    assert_eq!(
        said(&[beyond]),
        [
            "6:13 warning: queue 4 is beyond the 4 queues that eth0.100 can have: this rule never grants it there"
        ]
    );
    assert!(said(&[&beyond.replace("2-5", "*")]).is_empty());
    let lsm = beyond.replace("2-5", "2-3").replace("none", "lsm");
    let [warning] = &said(&[&lsm])[..] else { panic!() };
    assert!(
        warning.contains("eth0.100 has `queue-lock = \"lsm\"`, and this kernel asks no BPF programs"),
        "{warning}"
    );
    let limits =
        beyond.replace("2-5", "2-3") + "[limits.per-user]\nqueues = 8\n[limits.in-all]\nqueues = 4\n";
    let [warning] = &said(&[&limits])[..] else {
        panic!()
    };
    assert!(
        warning.contains(
            "warning: each user may have 8 queues, and all of them together 4: the smaller number holds"
        ),
        "{warning}"
    );
}

#[test]
fn a_long_report_is_cut_and_stays_an_error() {
    let many = format!(
        "[[deny]]\nname = \"d\"\nuser = [{}]\nx = 1\n",
        "\"a\",".repeat(200)
    );
    let Err(error) = read(&[many.as_bytes()]) else {
        panic!("it was read");
    };
    assert_eq!(error.diagnostics.len(), 100);
    assert_eq!(error.diagnostics[0].severity, Severity::Error);
}
