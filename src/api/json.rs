//! Documents, read tolerantly and written exactly.

use super::error::FileLockError;
use crate::show::printable;
use log::warn;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use std::path::Path;

/// Reads a document: `None` if there is none, or it is not JSON, which is logged.
///
/// # Errors
/// [`FileLockError::Json`] if it is JSON, but no `T`, or too deep to be read (128 levels).
pub(super) fn parse<T: DeserializeOwned>(
    path: &Path,
    content: &[u8],
) -> Result<Option<T>, FileLockError> {
    if content.trim_ascii().is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(content) {
        Ok(value) => Ok(Some(value)),
        Err(source) => {
            let too_deep = source.to_string().starts_with("recursion limit exceeded");
            if source.classify() == Category::Data || too_deep {
                let path = path.to_owned();
                return Err(FileLockError::Json { path, source });
            }
            warn!(
                "{}: not a JSON document, the default is used instead: {source}",
                printable(path)
            );
            Ok(None)
        }
    }
}

/// Writes a document as the origin did: indented by two spaces, keys in their order; and with a
/// newline at its end.
///
/// # Errors
/// [`FileLockError::Json`].
pub(super) fn print<T: Serialize + ?Sized>(
    path: &Path,
    data: &T,
) -> Result<Vec<u8>, FileLockError> {
    let mut text = serde_json::to_vec_pretty(data).map_err(|source| FileLockError::Json {
        path: path.to_owned(),
        source,
    })?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(content: &[u8]) -> Result<Option<Value>, FileLockError> {
        parse(Path::new("x.json"), content)
    }

    #[test]
    fn what_is_no_document_is_none_and_what_is_another_type_is_an_error() {
        for content in ["", " \n", "{", "{\"a\": NaN}", "\u{feff}{}", "{} {}"] {
            assert_eq!(
                read(content.as_bytes()).expect(content),
                None,
                "{content:?}"
            );
        }
        assert_eq!(read(b"\"\xff\"").expect("tolerant"), None);
        assert_eq!(read(b"[1]\n").expect("valid"), Some(json!([1])));
        assert!(parse::<Vec<u8>>(Path::new("x"), b"{}").is_err());
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(
            read(deep.as_bytes()).is_err(),
            "valid, and not to be thrown away"
        );
    }

    #[test]
    fn documents_keep_the_order_of_their_keys() {
        let text = "{\n  \"z\": 1,\n  \"a\": [\n    1.5\n  ]\n}\n";
        let value = read(text.as_bytes()).expect("valid").expect("there");
        let printed = print(Path::new("x"), &value).expect("printed");
        assert_eq!(String::from_utf8_lossy(&printed), text);
        // As serde_json decides: JSON has no such number.
        let printed = print(Path::new("x"), &[f64::NAN]).expect("printed");
        assert_eq!(printed, b"[\n  null\n]\n");
        let keys = std::collections::HashMap::from([((1, 2), 3)]);
        assert!(print(Path::new("x"), &keys).is_err());
    }
}
