//! `reflect.c`, or `bound.c` where the first word is "bound"; linked with libxdp and with the client library for C.

// For their libraries only.
use libxdp_sys as _;
use xsk_client_c as _;

use std::ffi::{CString, c_char, c_int};
use std::ptr;

unsafe extern "C" {
    fn reflect_main(argc: c_int, argv: *const *const c_char) -> c_int;
    fn bound_main(argc: c_int, argv: *const *const c_char) -> c_int;
}

fn main() {
    let mut words: Vec<CString> = std::env::args()
        .filter_map(|word| CString::new(word).ok())
        .collect();
    let program = match words.get(1).is_some_and(|word| word.as_bytes() == b"bound") {
        true => {
            words.remove(1);
            bound_main
        }
        false => reflect_main,
    };
    let mut argv: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    let argc = c_int::try_from(argv.len()).unwrap_or(0);
    argv.push(ptr::null());
    // SAFETY: `argv` has `argc` strings and a null behind them, and lives through the call.
    let code = unsafe { program(argc, argv.as_ptr()) };
    std::process::exit(code);
}
