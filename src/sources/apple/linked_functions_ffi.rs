//! Apple's functions from the system's libraries (macOS).
//!
//! Fills the table from the linked declarations of `core-foundation-sys`, `io-kit-sys` and `mach2`. Each function has
//! an adapter that changes only the pointers' target types, so that the compiler compares our types with theirs.
//! IOReport is loaded at run time, so that the daemon also starts on a Mac without it.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_void};

use core_foundation_sys::{array, base, data, dictionary, string};
use io_kit_sys as iokit;

use super::dynamic_library_ffi::DynamicLibrary;
use super::functions_ffi::{
    AppleFunctions, CfRef, CoreFoundationFunctions, IoKitFunctions, IoReportFunctions, MachPort,
};

/// The path of IOReport; the file exists in dyld's cache only.
const IOREPORT: &std::ffi::CStr = c"/usr/lib/libIOReport.dylib";

/// Returns the table of the system's functions.
///
/// # Errors
/// Never: the functions are linked.
pub fn load_functions() -> Result<AppleFunctions, String> {
    // SAFETY: the port's name of this process, which is set before main.
    let task = unsafe { mach2::traps::mach_task_self() };
    Ok(AppleFunctions { foundation: FOUNDATION, kit: KIT, task, report: report() })
}

fn report() -> Result<IoReportFunctions, &'static str> {
    let library =
        DynamicLibrary::load(IOREPORT).map_err(|_| "this macOS has no /usr/lib/libIOReport.dylib")?;
    // SAFETY: the system's own library has functions of these names, whose types four independent programs agree on
    // (macmon, mactop, socpowerbud, Zeus); a `DynamicLibrary` stays loaded.
    let found = unsafe { IoReportFunctions::find(|name| library.symbol_address(name)) };
    found.map_err(|_| "the libIOReport.dylib of this macOS lacks functions that wattspan calls")
}

/// Functions that pass their arguments to the linked ones.
macro_rules! adapters {
    ($($name:ident($($argument:ident: $type:ty $(=> $cast:ident)?),*) $(-> $answer:ty)? = $target:path $(; $back:ident)?)*) => {
        $(unsafe extern "C" fn $name($($argument: $type),*) $(-> $answer)? {
            // SAFETY: the caller meets the target's conditions; a cast changes only the target type of a pointer.
            unsafe { $target($($argument$(.$cast())?),*)$(.$back())? }
        })*
    };
}

adapters! {
    string_create(allocator: CfRef => cast, bytes: *const u8, length: isize, encoding: u32, external: u8) -> CfRef
        = string::CFStringCreateWithBytes; cast
    string_read(text: CfRef => cast, buffer: *mut c_char, size: isize, encoding: u32) -> u8 = string::CFStringGetCString
    dictionary_get(from: CfRef => cast, key: CfRef) -> CfRef = dictionary::CFDictionaryGetValue
    dictionary_copy(allocator: CfRef => cast, capacity: isize, from: CfRef => cast) -> CfRef
        = dictionary::CFDictionaryCreateMutableCopy; cast_const_away
    dictionary_set(into: CfRef => cast_mutable, key: CfRef, value: CfRef) = dictionary::CFDictionarySetValue
    array_count(of: CfRef => cast) -> isize = array::CFArrayGetCount
    array_get(of: CfRef => cast, at: isize) -> CfRef = array::CFArrayGetValueAtIndex
    array_copy(allocator: CfRef => cast, capacity: isize, from: CfRef => cast) -> CfRef
        = array::CFArrayCreateMutableCopy; cast_const_away
    array_remove(from: CfRef => cast_mutable, at: isize) = array::CFArrayRemoveValueAtIndex
    data_length(of: CfRef => cast) -> isize = data::CFDataGetLength
    data_bytes(of: CfRef => cast) -> *const u8 = data::CFDataGetBytePtr
    matching(name: *const c_char) -> CfRef = iokit::IOServiceMatching; cast_const_away
    services(main: MachPort, matching: CfRef => cast, found: *mut MachPort) -> i32 = iokit::IOServiceGetMatchingServices
    name_of(entry: MachPort, name: *mut c_char) -> i32 = iokit::IORegistryEntryGetName
    timebase(into: *mut [u32; 2] => cast) -> i32 = mach2::mach_time::mach_timebase_info
}

/// Conversion to a mutable pointer, which the crates declare for some objects that they do not change.
trait Pointer {
    fn cast_mutable<T>(self) -> *mut T;
}

impl Pointer for CfRef {
    fn cast_mutable<T>(self) -> *mut T {
        self.cast_mut().cast()
    }
}

trait MutablePointer {
    fn cast_const_away(self) -> CfRef;
}

impl<T> MutablePointer for *mut T {
    fn cast_const_away(self) -> CfRef {
        self.cast_const().cast::<c_void>()
    }
}

const FOUNDATION: CoreFoundationFunctions = CoreFoundationFunctions {
    release: base::CFRelease,
    type_id,
    string_type_id,
    array_type_id,
    dictionary_type_id,
    data_type_id,
    string_create,
    string_read,
    dictionary_get,
    dictionary_copy,
    dictionary_set,
    array_count,
    array_get,
    array_copy,
    array_remove,
    data_length,
    data_bytes,
};

/// Type IDs are numbers as wide as a pointer; the crates use another name for the type.
unsafe extern "C" fn type_id(object: CfRef) -> usize {
    // SAFETY: the caller passes a live object.
    unsafe { base::CFGetTypeID(object) as usize }
}

unsafe extern "C" fn string_type_id() -> usize {
    // SAFETY: no condition.
    unsafe { string::CFStringGetTypeID() as usize }
}

unsafe extern "C" fn array_type_id() -> usize {
    // SAFETY: no condition.
    unsafe { array::CFArrayGetTypeID() as usize }
}

unsafe extern "C" fn dictionary_type_id() -> usize {
    // SAFETY: no condition.
    unsafe { dictionary::CFDictionaryGetTypeID() as usize }
}

unsafe extern "C" fn data_type_id() -> usize {
    // SAFETY: no condition.
    unsafe { data::CFDataGetTypeID() as usize }
}

const KIT: IoKitFunctions = IoKitFunctions {
    matching,
    services,
    next: iokit::IOIteratorNext,
    name_of,
    release: iokit::IOObjectRelease,
    open: iokit::IOServiceOpen,
    close: iokit::IOServiceClose,
    call: iokit::IOConnectCallStructMethod,
    timebase,
};
