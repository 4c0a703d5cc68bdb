//! The words of xdpsock, for who has them in the fingers: `-l -i eth0 -q 4` is `l2fwd eth0:4`.
//!
//! Options that both have are of the same letters (`arguments.rs`) and pass through. What this program has no such thing
//! for is told with what there is instead.

use std::ffi::OsString;

use crate::arguments::MODES;

/// Options of xdpsock's that nothing here corresponds to, and why.
const WITHOUT: [(&[&str], &str); 4] = [
    (
        &["-S", "--xdp-skb", "-N", "--xdp-native"],
        "how the XDP program is attached is for the policy to say (`xdp = \"native\" | \"generic\"`)",
    ),
    (
        &["-M", "--shared-umem"],
        "one process runs one queue: start another one for the next queue",
    ),
    (
        &["-m", "--no-need-wakeup"],
        "sockets are always bound with XDP_USE_NEED_WAKEUP",
    ),
    (
        &["-u", "--unaligned"],
        "chunks are aligned here; `--frags` takes packets that are longer than one",
    ),
];

/// What is so anyway: it sleeps in poll unless told `--busy`, shows all counters, and has no capability to give up.
const ANYWAY: [&str; 6] = ["-p", "--poll", "-x", "--extra-stats", "-R", "--reduce-cap"];

/// Makes this program's words of xdpsock's, where the words are those; others stay as they are.
pub(crate) fn translated(words: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let own = |word: &OsString| {
        let word = word.to_string_lossy();
        MODES.contains(&&*word) || ["help", "-h", "--help", "-V", "--version"].contains(&&*word)
    };
    let mut all = words.into_iter();
    let mut translated: Vec<OsString> = all.by_ref().take(1).collect();
    let words: Vec<OsString> = all.collect();
    if words.is_empty() || words.iter().any(own) {
        translated.extend(words);
        return Ok(translated);
    }
    let (mut mode, mut interface, mut queue, mut rest) = ("rxdrop", None, None, Vec::new());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (text.as_str(), None),
        };
        let mut value = || match value.clone() {
            Some(value) => Ok(value),
            None => words
                .next()
                .map(|word| word.to_string_lossy().into_owned())
                .ok_or_else(|| format!("{name} wants a value")),
        };
        match name {
            "-r" | "--rxdrop" => mode = "rxdrop",
            "-t" | "--txonly" => mode = "txonly",
            "-l" | "--l2fwd" => mode = "l2fwd",
            "-i" | "--interface" => interface = Some(value()?),
            "-q" | "--queue" => queue = Some(value()?),
            name if ANYWAY.contains(&name) => {}
            name => {
                if let Some((_, instead)) = WITHOUT.iter().find(|(names, _)| names.contains(&name)) {
                    return Err(format!("there is no {name} here: {instead}"));
                }
                rest.push(word);
            }
        }
    }
    translated.push(mode.into());
    match (interface, queue) {
        (Some(interface), queue) => {
            let queue = queue.unwrap_or_else(|| "0".to_owned());
            translated.push(format!("{interface}:{queue}").into());
        }
        (None, Some(queue)) => return Err(format!("queue {queue} of which device? -i names it")),
        (None, None) => {}
    }
    translated.extend(rest);
    Ok(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<String, String> {
        let words = line.split(' ').map(OsString::from).collect();
        let translated = translated(words)?;
        let words: Vec<_> = translated.iter().map(|word| word.to_string_lossy()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn xdpsocks_words_are_ours() {
        for (theirs, ours) in [
            ("x -l -i eth0 -q 4 -z -b 32", "x l2fwd eth0:4 -z -b 32"),
            ("x -i eth0", "x rxdrop eth0:0"),
            (
                "x --txonly --interface=eth0 --queue=2 --duration=10 -C 5",
                "x txonly eth0:2 --duration=10 -C 5",
            ),
            ("x -r -p -x -R -q 1 -i veth0", "x rxdrop veth0:1"),
            // Inherited.
            ("x -l", "x l2fwd"),
        ] {
            assert_eq!(words(theirs).as_deref(), Ok(ours));
        }
    }

    #[test]
    fn our_own_stay_as_they_are() {
        for line in [
            "x",
            "x --help",
            "x -V",
            "x rxdrop eth0:4 -n 2",
            "x help txonly",
            "x l2fwd -l",
        ] {
            assert_eq!(words(line).as_deref(), Ok(line));
        }
    }

    #[test]
    fn what_there_is_not_is_told() {
        assert!(
            words("x -r -i eth0 -S")
                .unwrap_err()
                .contains("there is no -S here: how the XDP")
        );
        assert_eq!(
            words("x -q 3").unwrap_err(),
            "queue 3 of which device? -i names it"
        );
        assert_eq!(words("x -l -i").unwrap_err(), "-i wants a value");
    }
}
