//! Reads a `.varlink` file and holds messages against it, sharing nothing with the library's own types.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A type of the interface definition language.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Type {
    Bool,
    Int,
    Float,
    String,
    Object,
    Named(String),
    Array(Box<Type>),
    Map(Box<Type>),
    Optional(Box<Type>),
    Struct(Members),
    Enum(Vec<String>),
}

/// Members of a struct, in the order of the file.
pub(crate) type Members = Vec<(String, Type)>;

/// A method's parameters and its result.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) parameters: Members,
    pub(crate) result: Members,
}

/// A whole file.
#[derive(Debug, Default)]
pub(crate) struct VarlinkFile {
    pub(crate) interface: String,
    pub(crate) types: BTreeMap<String, Type>,
    pub(crate) methods: BTreeMap<String, Method>,
    pub(crate) errors: BTreeMap<String, Members>,
}

impl VarlinkFile {
    pub(crate) fn read(text: &str) -> Self {
        let mut tokens = Tokens(tokens(text));
        let mut file = Self::default();
        while let Some(keyword) = tokens.next() {
            let name = tokens.next().unwrap();
            let new = match keyword.as_str() {
                "interface" => std::mem::replace(&mut file.interface, name).is_empty(),
                "type" => file.types.insert(name, tokens.read_type()).is_none(),
                "error" => file.errors.insert(name, tokens.read_members()).is_none(),
                "method" => {
                    let parameters = tokens.read_members();
                    tokens.expect("->");
                    let result = tokens.read_members();
                    file.methods.insert(name, Method { parameters, result }).is_none()
                }
                other => panic!("{other} begins no definition"),
            };
            assert!(new, "defined twice: a {keyword}");
        }
        file
    }

    /// What is wrong with an object, a line each.
    pub(crate) fn complaints(&self, members: &Members, value: &Value, path: &str) -> Vec<String> {
        let Value::Object(object) = value else {
            return vec![format!("{path} is no object: {value}")];
        };
        let known = |name: &String| members.iter().any(|(member, _)| member == name);
        let mut lines: Vec<String> = object
            .keys()
            .filter(|name| !known(name))
            .map(|name| format!("{path}.{name} is not in the file"))
            .collect();
        for (name, kind) in members {
            lines.extend(self.member_complaints(kind, object.get(name), &format!("{path}.{name}")));
        }
        lines
    }

    fn member_complaints(&self, kind: &Type, value: Option<&Value>, path: &str) -> Vec<String> {
        match (kind, value) {
            (Type::Optional(_), None) => vec![],
            (_, None) => vec![format!("{path} is missing")],
            (kind, Some(value)) => self.value_complaints(kind, value, path),
        }
    }

    fn value_complaints(&self, kind: &Type, value: &Value, path: &str) -> Vec<String> {
        let right = match (kind, value) {
            (Type::Optional(inner), value) if !value.is_null() => {
                return self.value_complaints(inner, value, path);
            }
            (Type::Named(name), value) => return self.value_complaints(&self.types[name], value, path),
            (Type::Struct(members), value) => return self.complaints(members, value, path),
            (Type::Array(inner), Value::Array(values)) => {
                let each = values.iter().enumerate();
                return each
                    .flat_map(|(index, value)| {
                        self.value_complaints(inner, value, &format!("{path}[{index}]"))
                    })
                    .collect();
            }
            (Type::Map(inner), Value::Object(values)) => {
                let each = values.iter();
                return each
                    .flat_map(|(key, value)| self.value_complaints(inner, value, &format!("{path}.{key}")))
                    .collect();
            }
            (Type::Enum(words), Value::String(word)) => words.contains(word),
            (Type::Optional(_), Value::Null)
            | (Type::Bool, Value::Bool(_))
            | (Type::String, Value::String(_)) => true,
            // Varlink's int is 64 bits with a sign.
            (Type::Int, value) => value.is_i64(),
            (Type::Float, value) => value.is_number(),
            (Type::Object, value) => value.is_object(),
            _ => false,
        };
        if right {
            vec![]
        } else {
            vec![format!("{path} is no {kind:?}: {value}")]
        }
    }

    /// A message that fits, with every optional member.
    pub(crate) fn sample(&self, members: &Members) -> Value {
        let samples = members
            .iter()
            .map(|(name, kind)| (name.clone(), self.sample_of(kind)));
        Value::Object(Map::from_iter(samples))
    }

    fn sample_of(&self, kind: &Type) -> Value {
        match kind {
            Type::Bool => true.into(),
            Type::Int | Type::Float => 1.into(),
            Type::String => "a".into(),
            Type::Object | Type::Map(_) => Value::Object(Map::new()),
            Type::Named(name) => self.sample_of(&self.types[name]),
            Type::Array(inner) => vec![self.sample_of(inner)].into(),
            Type::Optional(inner) => self.sample_of(inner),
            Type::Struct(members) => self.sample(members),
            Type::Enum(words) => words[0].clone().into(),
        }
    }
}

/// Names and signs, without comments.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    for line in text.lines() {
        let mut rest = line.split('#').next().unwrap_or_default().trim_start();
        while let Some(first) = rest.chars().next() {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            let length = match rest {
                _ if rest.starts_with("->") => 2,
                _ if is_name(first) => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            tokens.push(rest[..length].to_owned());
            rest = rest[length..].trim_start();
        }
    }
    tokens.reverse();
    tokens
}

/// What is left to read, the next one last.
struct Tokens(Vec<String>);

impl Tokens {
    fn next(&mut self) -> Option<String> {
        self.0.pop()
    }

    fn expect(&mut self, sign: &str) {
        assert_eq!(self.next().as_deref(), Some(sign));
    }

    fn read_members(&mut self) -> Members {
        match self.read_type() {
            Type::Struct(members) => members,
            other => panic!("{other:?} where members are expected"),
        }
    }

    fn read_type(&mut self) -> Type {
        match self.next().unwrap().as_str() {
            "?" => Type::Optional(Box::new(self.read_type())),
            "[" => match self.next().unwrap().as_str() {
                "]" => Type::Array(Box::new(self.read_type())),
                "string" => {
                    self.expect("]");
                    Type::Map(Box::new(self.read_type()))
                }
                other => panic!("[{other}"),
            },
            "(" => self.read_parenthesis(),
            "bool" => Type::Bool,
            "int" => Type::Int,
            "float" => Type::Float,
            "string" => Type::String,
            "object" => Type::Object,
            name => Type::Named(name.to_owned()),
        }
    }

    /// A struct or an enum, after its parenthesis.
    fn read_parenthesis(&mut self) -> Type {
        let (mut members, mut words) = (Vec::new(), Vec::new());
        loop {
            let name = match self.next().unwrap().as_str() {
                ")" if words.is_empty() => return Type::Struct(members),
                name => name.to_owned(),
            };
            let mut sign = self.next().unwrap();
            if sign == ":" {
                members.push((name, self.read_type()));
                sign = self.next().unwrap();
            } else {
                words.push(name);
            }
            match (sign.as_str(), words.is_empty()) {
                (",", _) => {}
                (")", true) => return Type::Struct(members),
                (")", false) => return Type::Enum(words),
                (other, _) => panic!("{other} in a list"),
            }
        }
    }
}

#[test]
fn a_checker_that_finds_everything() {
    let file = VarlinkFile::read(
        "# words\ninterface a.b\ntype E (x, y)\ntype S (\n  e: E, # more\n  l: []?int, o: ?S\n)\nmethod M(s: S) -> ()\nerror X (m: [string]bool)",
    );
    assert_eq!((file.interface.as_str(), file.types.len()), ("a.b", 2));
    let check = |text: &str| {
        let value = serde_json::from_str(text).unwrap();
        file.complaints(&file.methods["M"].parameters, &value, "M")
    };
    let good = r#"{"s":{"e":"x","l":[1,null],"o":{"e":"y","l":[]}}}"#;
    assert_eq!(check(good), Vec::<String>::new());
    assert_eq!(check("{}"), ["M.s is missing"]);
    assert_eq!(check(&good.replace("\"y\"", "\"z\"")).len(), 1);
    assert_eq!(check(&good.replace("[1", "[1.5")).len(), 1);
    assert_eq!(
        check(&good.replace("\"e\":\"x\"", "\"e\":\"x\",\"later\":1")).len(),
        1
    );
    assert_eq!(file.sample(&file.errors["X"]), serde_json::json!({ "m": {} }));
}
