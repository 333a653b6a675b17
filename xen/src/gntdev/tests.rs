//! Behaviour of grants over the fake.
