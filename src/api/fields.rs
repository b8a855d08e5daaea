//! Fields of objects that are known only as JSON.

use serde_json::Value;

/// Does `present` say everything that `wanted` says? Maps may hold more, and so may the maps in lists.
pub fn contains(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| present.get(key).is_some_and(|have| contains(have, value))),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len()
                && present.iter().zip(wanted).all(|(present, wanted)| contains(present, wanted))
        }
        _ => present == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn additions_of_others_are_no_difference_and_a_missing_field_is() {
        let present = json!({"a": {"b": 1, "theirs": 2}, "list": [{"x": 1, "y": 2}]});
        assert!(contains(&present, &json!({"a": {"b": 1}})));
        assert!(contains(&present, &json!({"list": [{"x": 1}]})));
        assert!(!contains(&present, &json!({"a": {"b": 2}})));
        assert!(!contains(&present, &json!({"a": {"c": 1}})));
        assert!(!contains(&present, &json!({"list": []})));
    }
}
