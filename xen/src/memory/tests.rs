//! Address codec, and foreign memory over the fake.
