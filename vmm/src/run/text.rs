//! Values on the command line, read as the type that a configuration wants.
//!
//! `64` is a number where one is wanted and a text where that is; lists and
//! tables are written as in TOML.

use serde::Deserializer;
use serde::de::value::Error;
use serde::de::{Error as _, IntoDeserializer, Visitor};
use toml::de::ValueDeserializer;

/// A value's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a>(pub &'a str);

/// A number, decimal or hexadecimal after `0x`.
pub(super) fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `true` or `false`.
pub(super) fn truth(text: &str) -> Option<bool> {
    text.parse().ok()
}

impl<'a> Text<'a> {
    fn wrong(self, expected: &str) -> Error {
        Error::custom(format_args!("{:?} is not {expected}", self.0))
    }

    fn toml(self) -> Result<ValueDeserializer<'a>, Error> {
        ValueDeserializer::parse(self.0).map_err(|error| Error::custom(error.message()))
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_u64(number(self.0).ok_or_else(|| self.wrong("a number"))?)
        }
    )*};
}

macro_rules! as_toml {
    ($($method:ident($($argument:ident: $type:ty),*);)*) => {$(
        fn $method<V: Visitor<'de>>(
            self,
            $($argument: $type,)*
            visitor: V,
        ) -> Result<V::Value, Error> {
            let value = self.toml()?;
            value
                .$method($($argument,)* visitor)
                .map_err(|error| Error::custom(error.message()))
        }
    )*};
}

impl<'de> Deserializer<'de> for Text<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let quoted = self.0.strip_prefix('"');
        match quoted.and_then(|text| text.strip_suffix('"')) {
            // as in TOML, which knows what stands behind a backslash
            Some(_) => self
                .toml()?
                .deserialize_any(visitor)
                .map_err(|error| Error::custom(error.message())),
            None => visitor.visit_borrowed_str(self.0),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(truth(self.0).ok_or_else(|| self.wrong("true or false"))?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.0.starts_with('{') {
            let value = self.toml()?;
            return value
                .deserialize_enum(name, variants, visitor)
                .map_err(|error| Error::custom(error.message()));
        }
        visitor.visit_enum(self.0.into_deserializer())
    }

    numbers! {
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
    }

    as_toml! {
        deserialize_f32();
        deserialize_f64();
        deserialize_seq();
        deserialize_tuple(len: usize);
        deserialize_tuple_struct(name: &'static str, len: usize);
        deserialize_map();
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de> for Text<'de> {
    type Deserializer = Text<'de>;

    fn into_deserializer(self) -> Self::Deserializer {
        self
    }
}
