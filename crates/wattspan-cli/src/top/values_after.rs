//! The order in which a key steps through the values of a setting.

use clap::ValueEnum;

/// The values that follow `value` in the order of their declaration, again from the first after the last, without end.
pub fn values_after<T: ValueEnum + PartialEq + 'static>(value: T) -> impl Iterator<Item = T> {
    T::value_variants().iter().cloned().cycle().skip_while(move |other| *other != value).skip(1)
}
