//! Requests that are wrong, and messages that are none: the one gets words and its connection lives on, the other ends
//! its own connection, and nobody else notices.

use e2e::raw_client::INTERFACE;
use e2e::world::World;
use serde_json::{Value, json};

use crate::scene::{Scene, explain, is_served};

/// The longest message that the broker reads.
const LIMIT: usize = 64 * 1024;

#[test]
fn a_wrong_request_gets_words_and_the_connection_lives_on() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut client = scene.client();
    let mut good = scene.client();
    for (request, error, words) in wrong_requests() {
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        let reply = client
            .exchange(&request)
            .unwrap()
            .unwrap_or_else(|| panic!("closed after {shown}"));
        assert_eq!(reply["error"], error, "{shown}: {reply}");
        let said = reply["parameters"].to_string();
        assert!(said.contains(words), "{shown}: {said}");
        assert!(is_served(&mut client), "after {shown}");
        assert!(is_served(&mut good), "beside {shown}");
    }

    // Not wrong: `more` of a method that has one reply, `oneway` with none, a limit that is met exactly.
    let with = |member: &str, queue| {
        let mut call: Value = serde_json::from_slice(&explain(queue)).unwrap();
        call[member] = json!(true);
        call.to_string().into_bytes()
    };
    let reply = client.exchange(&with("more", 1)).unwrap().unwrap();
    assert_eq!(reply["parameters"]["granted"], true);
    assert!(reply.get("continues").is_none(), "{reply}");
    client.send(&[&with("oneway", 1)[..], b"\0"].concat()).unwrap();
    let reply = client.exchange(&explain(5)).unwrap().unwrap();
    assert_eq!(
        reply["parameters"]["granted"], false,
        "the oneway call was answered"
    );
    let mut longest = explain(1);
    longest.resize(LIMIT, b' ');
    assert_eq!(
        client.exchange(&longest).unwrap().unwrap()["parameters"]["granted"],
        true
    );

    drop((client, good));
    scene.finish();
}

/// What is sent, and which error with which words comes back.
fn wrong_requests() -> Vec<(Vec<u8>, String, &'static str)> {
    let own = |name: &str| format!("{INTERFACE}.{name}");
    let service = |name: &str| format!("org.varlink.service.{name}");
    let call = |method: &str, parameters: &str| {
        format!(r#"{{"method":"{INTERFACE}.{method}","parameters":{parameters}}}"#).into_bytes()
    };
    let deep = "[".repeat(30_000) + &"]".repeat(30_000);
    let many = |count: u32| json!({ "interface": "eth0", "queues": Vec::from_iter(0..count) }).to_string();
    let explains = [
        (deep.clone(), "expected an object"),
        (format!(r#"{{"interface":{deep}}}"#), "expected a string"),
        (
            format!(r#"{{"interface":"eth0","queues":{deep}}}"#),
            "expected u32",
        ),
        (format!(r#"{{"later":{deep}}}"#), "unknown field `later`"),
        (r#"["eth0",[1]]"#.into(), "expected an object"),
        (
            r#"{"interface":"eth0","queues":[1],"rings":[64,64,64,64]}"#.into(),
            "expected an object",
        ),
        (
            r#"{"interface":"eth0","queues":[1],"rings":{"fill":64}}"#.into(),
            "missing field `completion`",
        ),
        (
            r#"{"interface":"eth0","interface":"eth0","queues":[1]}"#.into(),
            "duplicate field `interface`",
        ),
        (
            r#"{"interface":"eth0","queues":[1],"uids":1}"#.into(),
            "unknown field `uids`",
        ),
        (r#"{"interface":7,"queues":[1]}"#.into(), "expected a string"),
        (
            r#"{"interface":"eth0","queues":{}}"#.into(),
            "expected a sequence",
        ),
        (
            r#"{"interface":"eth0","queues":[-1]}"#.into(),
            "`-1`, expected u32",
        ),
        (
            r#"{"interface":"eth0","queues":[4294967296]}"#.into(),
            "`4294967296`, expected u32",
        ),
        (
            r#"{"interface":"eth0","queues":[18446744073709551616]}"#.into(),
            "expected u32",
        ),
        (
            r#"{"interface":"eth0","queues":[1e999]}"#.into(),
            "number out of range",
        ),
        (r#"{"interface":"eth0","queues":[1.0]}"#.into(), "expected u32"),
        (r#"{"interface":"eth0","queues":[]}"#.into(), "no queue id given"),
        (
            r#"{"interface":"eth0","queues":[1,1]}"#.into(),
            "queue 1 is given twice",
        ),
        (many(65), "65 queues in one request, 64 are the most"),
        (many(10_000), "queues in one request, 64 are the most"),
        (
            r#"{"interface":"eth/0","queues":[1]}"#.into(),
            "is no interface name",
        ),
        (
            r#"{"interface":"\u0000","queues":[1]}"#.into(),
            "is no interface name",
        ),
        (r#"{"queues":[1]}"#.into(), "missing field `interface`"),
        (
            r#"{"interface":"eth0","queues":[1],"sockets":"naked"}"#.into(),
            "unknown variant `naked`",
        ),
        ("7".into(), "expected an object"),
        (r#""text""#.into(), "expected an object"),
    ];
    let mut cases: Vec<_> = explains
        .into_iter()
        .map(|(parameters, words)| (call("Explain", &parameters), own("InvalidRequest"), words))
        .collect();
    let calls = [
        (r#"{}"#.to_owned(), "missing field `method`"),
        (r#"{"parameters":{}}"#.into(), "missing field `method`"),
        (r#"{"method":7}"#.into(), "expected"),
        (r#"{"method":null}"#.into(), "expected"),
        (
            r#"{"method":"a.B","method":"a.B"}"#.into(),
            "duplicate field `method`",
        ),
        (
            r#"{"method":"a.B","paramters":{}}"#.into(),
            "unknown field `paramters`",
        ),
        (format!(r#"{{"method":"a.B","x":{deep}}}"#), "unknown field `x`"),
        (r#"{"method":"a.B","more":1}"#.into(), "expected a boolean"),
        (
            format!(r#"{{"method":"{INTERFACE}.ListLeases","upgrade":true}}"#),
            "no upgrade",
        ),
        (
            format!(r#"{{"method":"{INTERFACE}.ListLeases","parameters":{{"all":true}}}}"#),
            "unknown field `all`",
        ),
        (
            format!(r#"{{"method":"{INTERFACE}.Activate"}}"#),
            "missing field `lease`",
        ),
        (
            format!(r#"{{"method":"{INTERFACE}.Activate","parameters":{{"lease":-1}}}}"#),
            "expected u64",
        ),
        (
            format!(
                r#"{{"method":"{INTERFACE}.Acquire","parameters":{{"interface":"eth0","queues":[1],"sockets":"prepared","rings":{{"fill":64,"completion":3,"rx":64,"tx":64}}}}}}"#
            ),
            "completion ring of 3 entries",
        ),
    ];
    cases.extend(
        calls
            .into_iter()
            .map(|(text, words)| (text.into_bytes(), own("InvalidRequest"), words)),
    );
    cases.extend([
        (
            call("Later", "{}"),
            service("MethodNotFound"),
            "org.xskbroker.Broker.Later",
        ),
        (call("", "{}"), service("MethodNotFound"), "org.xskbroker.Broker."),
        (
            br#"{"method":"a.b.C"}"#.to_vec(),
            service("InterfaceNotFound"),
            "\"a.b\"",
        ),
        (br#"{"method":""}"#.to_vec(), service("InterfaceNotFound"), "\"\""),
        (
            br#"{"method":"org.varlink.service.Later"}"#.to_vec(),
            service("MethodNotFound"),
            "Later",
        ),
    ]);
    cases
}

#[test]
fn a_malformed_message_ends_its_own_connection() {
    let world = World::new().unwrap();
    let scene = Scene::new(&world);
    let mut good = scene.client();
    let too_long = |byte: u8| vec![byte; LIMIT + 1];
    let mut padded = explain(1);
    padded.resize(LIMIT + 1, b' ');
    let nested = |opening: &str, levels| opening.repeat(levels).into_bytes();
    let parameters = [
        br#"{"method":"a.B","parameters":"#,
        &nested("[", 60_000)[..],
        b"}",
    ]
    .concat();
    let trailing = |rest: &[u8]| [&explain(1)[..], rest].concat();
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("white space", b"  \n".to_vec()),
        ("a call above the limit", padded),
        ("zeros in text", too_long(b'0')),
        ("an endless member", too_long(b'{')),
        ("an array", [b"[", &explain(1)[..], b"]"].concat()),
        (
            "a call as an array",
            br#"["org.xskbroker.Broker.ListLeases",{}]"#.to_vec(),
        ),
        ("a string", br#""org.xskbroker.Broker.ListLeases""#.to_vec()),
        ("a number", b"7".to_vec()),
        ("null", b"null".to_vec()),
        ("half an object", br#"{"method":"#.to_vec()),
        ("no JSON", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a second object", trailing(&explain(1))),
        ("a stray brace", trailing(b"}")),
        ("invalid UTF-8 outside", trailing(b"\xff")),
        ("invalid UTF-8 in a member", b"{\"method\":\"\xff\xfe\"}".to_vec()),
        ("a surrogate in UTF-8", b"{\"method\":\"\xed\xa0\x80\"}".to_vec()),
        ("a control character", b"{\"method\":\"a\nb\"}".to_vec()),
        ("deep arrays", nested("[", 60_000)),
        ("deep arrays above the limit", nested("[", 100_000)),
        ("deep objects", nested("{\"a\":", 12_000)),
        ("deep parameters", parameters),
    ];
    for (name, message) in &malformed {
        let mut client = scene.client();
        let reply = client.exchange(message).unwrap();
        assert_eq!(reply, None, "{name}");
        assert!(is_served(&mut good), "beside {name}");
    }
    // Only NULs: each of them ends an empty message, and the first is enough.
    let mut client = scene.client();
    assert_eq!(client.exchange(&[0; 4096]).unwrap(), None);
    // An end in the middle of a request is no offence, and nothing to answer.
    let mut client = scene.client();
    client.send(b"{\"method\"").unwrap();
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.receive().unwrap(), None);
    // A request and the end of the client's sending: it is still answered.
    let mut client = scene.client();
    client.send(&[&explain(1)[..], b"\0"].concat()).unwrap();
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.receive().unwrap().is_some());
    assert_eq!(client.receive().unwrap(), None);
    drop((client, good));
    scene.finish();
}
