//! How a program reports: one line per feature, `ok`, `FAIL reason` or `-` where the driver has no such thing.

use std::error::Error;
use std::fmt::Debug;
use std::future::Future;

pub type Failure = Box<dyn Error + Send + Sync>;
pub type Outcome = Result<(), Failure>;

pub async fn feature(name: &str, body: impl Future<Output = Outcome>) {
    match body.await {
        Ok(()) => println!("{name} ok"),
        Err(error) => {
            let mut reason = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                reason += &format!(": {cause}");
                source = cause.source();
            }
            let words: Vec<&str> = reason.split_whitespace().collect();
            println!("{name} FAIL {:.300}", words.join(" "));
        }
    }
}

pub fn absent(name: &str) {
    println!("{name} -");
}

pub fn equal<T: PartialEq + Debug>(found: T, expected: T) -> Outcome {
    if found == expected { Ok(()) } else { Err(format!("{found:.100?} instead of {expected:.100?}").into()) }
}

/// What every driver is given as types: all of them have to come back as they went.
pub const TYPES: &str = "SELECT $1::int4, $2::int8, $3::text, $4::bytea, $5::bool, $6::date, $7::timestamptz, \
     $8::uuid, $9::jsonb, $10::int4[], $11::text";
