//! The calls to IOReport: a group's channels, a subscription to some of them, and samples of it.
//!
//! Owns every object that a function with Create or Copy in its name returns, and releases each once. The result of a
//! Get function is borrowed from its container and never outlives it. The type of each object is checked before its
//! use, since nothing is documented. Copies numbers and text. After the start, a sample creates no text and allocates
//! nothing here.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::ptr::null;

use super::functions_ffi::{
    AppleFunctions, CF_STRING_ENCODING_UTF8, CfRef, CoreFoundationFunctions, IoReportFunctions,
};
use super::ioreport_channel::{IoReportChannel, RawElement, Timebase};

/// `kIOReportFormatSimple`: one number.
const FORMAT_SIMPLE: i32 = 1;

/// The keys of the channel list in a dictionary, and of the raw bytes in a channel of a sample.
const CHANNELS_KEY: &str = "IOReportChannels";
const RAW_ELEMENTS_KEY: &str = "RawElements";

/// The length of a tick of the machine's clock, the unit of the elements' stamps.
pub fn timebase(calls: &AppleFunctions) -> Option<Timebase> {
    let mut parts = [0; 2];
    // SAFETY: `mach_timebase_info` is two words, a numerator and a denominator, which the call fills.
    let status = unsafe { (calls.kit.timebase)(&raw mut parts) };
    (status == 0).then(|| Timebase::new(parts[0], parts[1]))?
}

/// An object that this value owns. Never null.
struct OwnedCfObject {
    object: CfRef,
    release: unsafe extern "C" fn(CfRef),
}

// SAFETY: CoreFoundation's objects are not bound to a thread, and their reference counts are atomic. An object that is
// changed after its creation here is reachable through one value only.
unsafe impl Send for OwnedCfObject {}

impl OwnedCfObject {
    /// Takes ownership of the result of a Create or Copy function; `None` for null.
    fn from_created(foundation: &CoreFoundationFunctions, object: CfRef) -> Option<OwnedCfObject> {
        // `then`, not `then_some`: a value with null would be dropped, and releasing null crashes.
        (!object.is_null()).then(|| OwnedCfObject { object, release: foundation.release })
    }

    fn from_text(foundation: &CoreFoundationFunctions, text: &str) -> Option<OwnedCfObject> {
        let length = isize::try_from(text.len()).ok()?;
        // SAFETY: the bytes are valid UTF-8 of the length given, and are copied.
        let made =
            unsafe { (foundation.string_create)(null(), text.as_ptr(), length, CF_STRING_ENCODING_UTF8, 0) };
        OwnedCfObject::from_created(foundation, made)
    }
}

impl Drop for OwnedCfObject {
    fn drop(&mut self) {
        // SAFETY: the object is alive, and this value owns one reference, which is released once.
        unsafe { (self.release)(self.object) }
    }
}

/// The channels of one group, before a subscription.
pub struct ChannelGroup {
    foundation: CoreFoundationFunctions,
    report: IoReportFunctions,
    /// An owned copy of the dictionary, whose list may be replaced.
    dictionary: OwnedCfObject,
    key: OwnedCfObject,
}

impl ChannelGroup {
    /// The channels of `group`; `None` if IOReport has none, as in most virtual machines.
    pub fn copy(calls: &AppleFunctions, report: IoReportFunctions, group: &str) -> Option<ChannelGroup> {
        let foundation = calls.foundation;
        let (key, name) = (
            OwnedCfObject::from_text(&foundation, CHANNELS_KEY)?,
            OwnedCfObject::from_text(&foundation, group)?,
        );
        // SAFETY: a live string, no subgroup, and the three zeroes that all known callers pass; we own the result.
        let found = unsafe { (report.copy_channels)(name.object, null(), 0, 0, 0) };
        let found = OwnedCfObject::from_created(&foundation, found)?;
        // SAFETY: the object is alive.
        if !unsafe { has_type(&foundation, found.object, foundation.dictionary_type_id) } {
            return None;
        }
        // SAFETY: a live dictionary; we own the copy.
        let copy = unsafe { (foundation.dictionary_copy)(null(), 0, found.object) };
        Some(ChannelGroup {
            foundation,
            report,
            dictionary: OwnedCfObject::from_created(&foundation, copy)?,
            key,
        })
    }

    /// The descriptions of the channels, in IOReport's order.
    pub fn channels(&self) -> Vec<IoReportChannel> {
        // SAFETY: a live dictionary that we own; the list is borrowed from it while it is not changed.
        unsafe { channel_list(&self.foundation, self.dictionary.object, self.key.object) }
            .map(|list| (0..array_len(&self.foundation, list)).map(|at| self.channel(list, at)).collect())
            .unwrap_or_default()
    }

    fn channel(&self, list: CfRef, at: isize) -> IoReportChannel {
        // SAFETY: `list` is a live array of `dictionary`, and `at` is less than its length.
        unsafe { read_channel(&self.foundation, &self.report, (self.foundation.array_get)(list, at)) }
    }

    /// Subscribes only to the channels with these indices in [`ChannelGroup::channels`]; fewer channels cost less.
    /// `None` if IOReport refuses.
    pub fn subscribe(self, kept: &[usize]) -> Option<IoReportSubscription> {
        let foundation = self.foundation;
        // SAFETY: a live dictionary that we own.
        let list = unsafe { channel_list(&foundation, self.dictionary.object, self.key.object) }?;
        // SAFETY: a live array; we own the copy, which is not yet shared.
        let shorter = unsafe { (foundation.array_copy)(null(), 0, list) };
        let shorter = OwnedCfObject::from_created(&foundation, shorter)?;
        for at in (0..array_len(&foundation, shorter.object)).rev() {
            if !usize::try_from(at).is_ok_and(|at| kept.contains(&at)) {
                // SAFETY: our own array, mutable, and `at` is less than its length, since it shrinks from its end.
                unsafe { (foundation.array_remove)(shorter.object, at) };
            }
        }
        // SAFETY: our own mutable dictionary, a live key and a live value, which the dictionary retains. `list` is not
        // used after this, which may have freed it.
        unsafe { (foundation.dictionary_set)(self.dictionary.object, self.key.object, shorter.object) };
        drop(shorter);
        self.subscribe_to_all()
    }

    /// Subscribes to every channel of the group.
    pub fn subscribe_to_all(self) -> Option<IoReportSubscription> {
        let foundation = self.foundation;
        let mut granted: CfRef = null();
        // SAFETY: a live dictionary, and an output pointer for the dictionary of the granted channels; we own both
        // results.
        let made =
            unsafe { (self.report.subscribe)(null(), self.dictionary.object, &raw mut granted, 0, null()) };
        drop(OwnedCfObject::from_created(&foundation, granted));
        Some(IoReportSubscription {
            subscription: OwnedCfObject::from_created(&foundation, made)?,
            raw: OwnedCfObject::from_text(&foundation, RAW_ELEMENTS_KEY)?,
            group: self,
        })
    }
}

/// A subscription to samples.
pub struct IoReportSubscription {
    subscription: OwnedCfObject,
    raw: OwnedCfObject,
    group: ChannelGroup,
}

/// The values of all channels at one instant.
pub struct IoReportSample<'a> {
    subscription: &'a IoReportSubscription,
    /// Owns `list`.
    _samples: OwnedCfObject,
    list: CfRef,
    length: usize,
}

impl IoReportSubscription {
    /// Takes a sample; `None` if IOReport returns none, or an unknown format.
    pub fn sample(&self) -> Option<IoReportSample<'_>> {
        let foundation = &self.group.foundation;
        // SAFETY: a live subscription and the live dictionary with which it was created; we own the result.
        let samples = unsafe {
            (self.group.report.sample)(self.subscription.object, self.group.dictionary.object, null())
        };
        let samples = OwnedCfObject::from_created(foundation, samples)?;
        // SAFETY: a live object whose type is checked first; the list is borrowed from `samples`, which the sample
        // owns.
        let list = unsafe {
            has_type(foundation, samples.object, foundation.dictionary_type_id)
                .then(|| channel_list(foundation, samples.object, self.group.key.object))
        }??;
        let length = usize::try_from(array_len(foundation, list)).ok()?;
        Some(IoReportSample { subscription: self, _samples: samples, list, length })
    }
}

impl IoReportSample<'_> {
    /// The number of channels.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The ID and time stamp of a channel; `None` if the channel has no raw element.
    pub fn element(&self, at: usize) -> Option<RawElement> {
        let foundation = &self.subscription.group.foundation;
        let entry = self.entry(at)?;
        // SAFETY: `entry` is a live dictionary; the data is borrowed from it, its type is checked first, and its
        // bytes are copied at once.
        unsafe {
            let data = (foundation.dictionary_get)(entry, self.subscription.raw.object);
            if !has_type(foundation, data, foundation.data_type_id) {
                return None;
            }
            let (bytes, length) = ((foundation.data_bytes)(data), (foundation.data_length)(data));
            let length = usize::try_from(length).ok().filter(|_| !bytes.is_null())?;
            RawElement::parse(std::slice::from_raw_parts(bytes, length))
        }
    }

    /// The channel's count in its own unit, from an unknown start.
    pub fn value(&self, at: usize) -> Option<u64> {
        let entry = self.entry(at)?;
        // SAFETY: a live channel, whose format was simple when it was selected.
        let value = unsafe { (self.subscription.group.report.value_of)(entry, 0) };
        // Negative values mean that there is no value.
        u64::try_from(value).ok()
    }

    /// The channel's name, unit and format.
    pub fn channel(&self, at: usize) -> Option<IoReportChannel> {
        let entry = self.entry(at)?;
        // SAFETY: a live channel.
        Some(unsafe {
            read_channel(&self.subscription.group.foundation, &self.subscription.group.report, entry)
        })
    }

    /// The dictionary of a channel, borrowed from this sample.
    fn entry(&self, at: usize) -> Option<CfRef> {
        let foundation = &self.subscription.group.foundation;
        let at = isize::try_from(at).ok().filter(|_| at < self.length)?;
        // SAFETY: a live array, and `at` is less than its length.
        let entry = unsafe { (foundation.array_get)(self.list, at) };
        // SAFETY: null, or a live object of the array.
        unsafe { has_type(foundation, entry, foundation.dictionary_type_id) }.then_some(entry)
    }
}

/// Whether `object` is not null and of this type.
///
/// # Safety
/// `object` is null or alive, and `kind` one of the `…_type_id` functions of the table.
unsafe fn has_type(
    foundation: &CoreFoundationFunctions,
    object: CfRef,
    kind: unsafe extern "C" fn() -> usize,
) -> bool {
    // SAFETY: guaranteed by the caller.
    !object.is_null() && unsafe { (foundation.type_id)(object) == kind() }
}

/// The list of channels in a dictionary, borrowed from it.
///
/// # Safety
/// `dictionary` is a live dictionary, and `key` a live text.
unsafe fn channel_list(foundation: &CoreFoundationFunctions, dictionary: CfRef, key: CfRef) -> Option<CfRef> {
    // SAFETY: guaranteed by the caller; the result is alive as long as the dictionary holds it.
    unsafe {
        let list = (foundation.dictionary_get)(dictionary, key);
        has_type(foundation, list, foundation.array_type_id).then_some(list)
    }
}

/// The length of a list. The caller has checked its type.
fn array_len(foundation: &CoreFoundationFunctions, list: CfRef) -> isize {
    // SAFETY: every caller in this file passes a live array.
    unsafe { (foundation.array_count)(list) }
}

/// The name, unit and format of a channel.
///
/// # Safety
/// `entry` is null or a live object of a list of channels.
unsafe fn read_channel(
    foundation: &CoreFoundationFunctions,
    report: &IoReportFunctions,
    entry: CfRef,
) -> IoReportChannel {
    // SAFETY: guaranteed by the caller, and a dictionary, as IOReport's functions require; the strings are borrowed.
    unsafe {
        if !has_type(foundation, entry, foundation.dictionary_type_id) {
            return IoReportChannel { name: String::new(), unit_label: String::new(), is_simple: false };
        }
        IoReportChannel {
            name: copy_text(foundation, (report.name_of)(entry)),
            unit_label: copy_text(foundation, (report.unit_of)(entry)),
            is_simple: (report.format_of)(entry) == FORMAT_SIMPLE,
        }
    }
}

/// A copy of a text; empty if it is missing or too long for a name or a label.
///
/// # Safety
/// `object` is null or alive.
unsafe fn copy_text(foundation: &CoreFoundationFunctions, object: CfRef) -> String {
    const MAX_TEXT_BYTES: usize = 256;
    let mut buffer = [0 as c_char; MAX_TEXT_BYTES];
    // SAFETY: guaranteed by the caller, and the type is checked first; the call writes at most the given size, NUL
    // included.
    let written = unsafe {
        has_type(foundation, object, foundation.string_type_id)
            && (foundation.string_read)(
                object,
                buffer.as_mut_ptr(),
                MAX_TEXT_BYTES as isize,
                CF_STRING_ENCODING_UTF8,
            ) != 0
    };
    if !written {
        return String::new();
    }
    // SAFETY: the call reported success, so the buffer has a string that ends with NUL.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned()
}
