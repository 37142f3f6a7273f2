//! Those who are watched, by number, and one look at all of them.
//!
//! Owns the table and its bounds. Numbers are given by whoever asks for the watch. A look reads a few files for each
//! process that is watched; whoever orders one learns what it took.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::clock::monotonic_ns;

use super::busy::Busy;
use super::group::{self, Group};
use super::kin::Kin;
use super::line::Line;
use super::tree::Tree;

/// Who is watched at once at most, and of these how many for one user.
const MOST: usize = 256;
const MOST_OF_USER: usize = 64;

/// Where the kernel shows its processes and control groups.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/proc`.
    pub proc_root: PathBuf,
    /// `/sys`.
    pub sysfs_root: PathBuf,
}

/// A process, told from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the boot.
    pub start: u64,
}

/// Why somebody is not watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwatched {
    /// Nobody of that name, or hidden.
    #[error("{0}")]
    Absent(String),
    /// The bound is reached.
    #[error("{limit} processes and control groups are watched already")]
    Full {
        /// The bound.
        limit: usize,
    },
}

/// What one of those who are watched has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Its number here.
    pub number: u32,
    /// CPU time since the first look; `None` where nobody tells.
    pub used_ns: Option<u64>,
    /// Whether it has nothing in common with the others that say so too.
    pub apart: bool,
}

/// One look.
#[derive(Debug, Clone, Default)]
pub struct Glance {
    /// The machine's busy time; `None` where nobody tells.
    pub busy_ns: Option<u64>,
    /// Everybody who is watched.
    pub counted: Vec<Counted>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Name {
    Process(Origin),
    Group(u64, String),
}

#[derive(Debug)]
enum Kind {
    /// With the control group it is in, as far as that is shown.
    Process(Tree, Option<String>),
    Group(Group),
}

#[derive(Debug)]
struct Watched {
    name: Name,
    kind: Kind,
    user: u32,
}

/// The table.
#[derive(Debug)]
pub struct Watch {
    roots: Roots,
    hierarchy: Option<PathBuf>,
    busy: Busy,
    kin: Kin,
    numbers: HashMap<Name, u32>,
    watched: HashMap<u32, Watched>,
}

impl Watch {
    /// Over these roots; opens a file or two and reads nothing until somebody is watched.
    pub fn new(roots: Roots) -> Self {
        let hierarchy = group::hierarchy(&roots.sysfs_root);
        let busy = Busy::find(&roots.proc_root, hierarchy.as_deref());
        let kin = Kin::new(roots.proc_root.clone());
        Self { roots, hierarchy, busy, kin, numbers: HashMap::new(), watched: HashMap::new() }
    }

    /// The process that has this number now.
    pub fn origin(&self, pid: u32) -> Option<Origin> {
        Some(Origin { pid, start: Line::read(&self.roots.proc_root, pid)?.start })
    }

    /// The process that has this number now, and whose it is.
    ///
    /// # Errors
    /// There is none, or it is hidden.
    pub fn process(&self, pid: u32) -> Result<(Origin, u32), Unwatched> {
        let absent = || Unwatched::Absent(format!("there is no process {pid}, or /proc hides it"));
        let origin = self.origin(pid).ok_or_else(absent)?;
        let entry = self.roots.proc_root.join(pid.to_string()).metadata().map_err(|_| absent())?;
        // The number may have passed to another process between the two.
        if self.origin(pid) == Some(origin) { Ok((origin, entry.uid())) } else { Err(absent()) }
    }

    /// The control group of this path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn group(&self, path: &str) -> Result<Group, Unwatched> {
        Group::open(self.hierarchy.as_deref(), path).map_err(Unwatched::Absent)
    }

    /// The number under which a process is watched.
    pub fn number_of(&self, origin: Origin) -> Option<u32> {
        self.numbers.get(&Name::Process(origin)).copied()
    }

    /// The number under which a group is watched.
    pub fn number_of_group(&self, group: &Group) -> Option<u32> {
        self.numbers.get(&Name::Group(group.inode, group.path.clone())).copied()
    }

    /// Whether there is room for one more, watched for this user.
    ///
    /// # Errors
    /// There is none.
    pub fn check_room(&self, user: u32, unlimited: bool) -> Result<(), Unwatched> {
        let theirs = self.watched.values().filter(|watched| watched.user == user).count();
        match () {
            () if self.watched.len() >= MOST => Err(Unwatched::Full { limit: MOST }),
            () if !unlimited && theirs >= MOST_OF_USER => Err(Unwatched::Full { limit: MOST_OF_USER }),
            () => Ok(()),
        }
    }

    /// Watches a process under this number.
    ///
    /// # Errors
    /// It is gone.
    pub fn add_process(&mut self, number: u32, user: u32, origin: Origin) -> Result<(), Unwatched> {
        let gone = || Unwatched::Absent("the process was gone before it could be looked at".into());
        let tree = Tree::of(origin.pid, origin.start, &self.roots.proc_root).ok_or_else(gone)?;
        let group = self.group_of(origin.pid);
        self.add(number, Watched { name: Name::Process(origin), kind: Kind::Process(tree, group), user });
        Ok(())
    }

    /// Watches a control group under this number.
    pub fn add_group(&mut self, number: u32, user: u32, group: Group) {
        let name = Name::Group(group.inode, group.path.clone());
        self.add(number, Watched { name, kind: Kind::Group(group), user });
    }

    fn add(&mut self, number: u32, watched: Watched) {
        self.numbers.insert(watched.name.clone(), number);
        self.watched.insert(number, watched);
    }

    /// Watches it no longer.
    pub fn remove(&mut self, number: u32) {
        if let Some(watched) = self.watched.remove(&number) {
            self.numbers.remove(&watched.name);
        }
    }

    /// The numbers of all who are watched.
    pub fn numbers(&self) -> Vec<u32> {
        self.watched.keys().copied().collect()
    }

    /// Whether this process belongs to the one of this number, as of the last look.
    pub fn holds(&self, number: u32, pid: u32) -> bool {
        match self.watched.get(&number).map(|watched| &watched.kind) {
            Some(Kind::Process(tree, _)) => tree.holds(pid),
            Some(Kind::Group(group)) => self.group_of(pid).is_some_and(|path| group.surrounds(&path)),
            None => false,
        }
    }

    /// Looks at everybody, and gives what the look took.
    pub fn look(&mut self) -> (Glance, u64) {
        let begun_ns = monotonic_ns();
        let now = boot_ticks();
        self.kin.refresh();
        let mut used: Vec<(u32, Option<u64>)> = Vec::with_capacity(self.watched.len());
        for (number, watched) in &mut self.watched {
            let used_ns = match &mut watched.kind {
                Kind::Process(tree, _) => Some(tree.used_ns(&self.kin, now)),
                Kind::Group(group) => group.used_ns(),
            };
            used.push((*number, used_ns));
        }
        // After those who are part of it, so that it has not seen less than they have.
        let busy_ns = self.busy.busy_ns();
        let count = |(number, used_ns)| Counted { number, used_ns, apart: self.is_apart(number) };
        let counted = used.into_iter().map(count).collect();
        (Glance { busy_ns, counted }, monotonic_ns().saturating_sub(begun_ns))
    }

    /// Whether nobody else who is watched holds this one, as far as can be told.
    fn is_apart(&self, number: u32) -> bool {
        let others =
            || self.watched.iter().filter(|(other, _)| **other != number).map(|(_, watched)| &watched.kind);
        match &self.watched[&number].kind {
            Kind::Process(tree, home) => !others().any(|other| match other {
                Kind::Process(other, _) => other.holds(tree.root()),
                Kind::Group(group) => home.as_ref().is_some_and(|home| group.surrounds(home)),
            }),
            Kind::Group(group) => !others().any(|other| match other {
                Kind::Group(other) => other.surrounds(&group.path),
                Kind::Process(_, Some(home)) => {
                    !group.surrounds(home) && group.path.starts_with(home.as_str())
                }
                Kind::Process(_, None) => false,
            }),
        }
    }

    /// The cgroup2 path of a process: the line `0::PATH`, cgroups(7).
    fn group_of(&self, pid: u32) -> Option<String> {
        let text = std::fs::read_to_string(self.roots.proc_root.join(pid.to_string()).join("cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    }
}

/// The time since the boot in the kernel's ticks, as processes' starts are told.
fn boot_ticks() -> u64 {
    crate::clock::with_sleep_ns() / super::TICK_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch::new(Roots { proc_root: "/proc".into(), sysfs_root: "/sys".into() })
    }

    #[test]
    fn one_user_cannot_take_the_room_of_all() {
        let mut watch = watch();
        let origin = watch.origin(std::process::id()).unwrap();
        for number in 1..=MOST_OF_USER as u32 {
            assert_eq!(watch.check_room(7, false), Ok(()));
            watch.add_process(number, 7, origin).unwrap();
        }
        assert_eq!(watch.check_room(7, false), Err(Unwatched::Full { limit: MOST_OF_USER }));
        assert_eq!(watch.check_room(8, false), Ok(()));
        assert_eq!(watch.check_room(7, true), Ok(()));
        for number in 1000..1000 + (MOST - MOST_OF_USER) as u32 {
            watch.add_process(number, 8, origin).unwrap();
        }
        assert_eq!(watch.check_room(0, true), Err(Unwatched::Full { limit: MOST }));
        watch.remove(1);
        assert_eq!(watch.check_room(0, true), Ok(()));
    }

    #[test]
    fn a_process_inside_anothers_tree_is_not_apart_from_it() {
        let mut watch = watch();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        for (number, pid) in [(1, std::process::id()), (2, child.id())] {
            let origin = watch.origin(pid).unwrap();
            watch.add_process(number, 7, origin).unwrap();
        }
        let (glance, _) = watch.look();
        let apart = |number| glance.counted.iter().find(|counted| counted.number == number).unwrap().apart;
        assert_eq!((apart(1), apart(2)), (true, false));
        assert!(glance.busy_ns.is_some() && glance.counted.iter().all(|counted| counted.used_ns.is_some()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_gone_is_not_watched() {
        let mut watch = watch();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let origin = watch.origin(child.id()).unwrap();
        child.wait().unwrap();
        assert!(matches!(watch.add_process(1, 7, origin), Err(Unwatched::Absent(_))));
        assert!(matches!(watch.process(origin.pid), Err(Unwatched::Absent(_))));
        assert_eq!(watch.number_of(origin), None);
    }
}
