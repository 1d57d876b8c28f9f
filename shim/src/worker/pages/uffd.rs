//! The kernel's userfaultfd, of which a server needs four requests and one kind of message; and files as the kernel copies them.
//!
//! The requests are ioctls, and memory of other processes is changed by address: there is no safe interface to either. The
//! crate of that name needs libclang to build, and covers more than is wanted.
#![expect(
    unsafe_code,
    reason = "ioctls that take addresses, and a descriptor that comes in a message"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

/// `struct uffd_msg`.
const MESSAGE_SIZE: usize = 32;

/// Messages taken by one read: each fault is one thread of the application.
const MESSAGES_MAX: usize = 64;

/// From `linux/userfaultfd.h`.
const PAGEFAULT: u8 = 0x12;
const FORK: u8 = 0x13;
const REMAP: u8 = 0x14;
const REMOVE: u8 = 0x15;
const UNMAP: u8 = 0x16;
const API: u64 = 0xAA;
/// Fork, remap, remove and unmap are told: what CRIU asks for.
const FEATURES: u64 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 6);

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

mod request {
    use super::{UffdioApi, UffdioCopy, UffdioRange, UffdioZeropage};
    nix::ioctl_readwrite!(api, 0xAA, 0x3F, UffdioApi);
    nix::ioctl_readwrite!(copy, 0xAA, 0x03, UffdioCopy);
    nix::ioctl_readwrite!(zeropage, 0xAA, 0x04, UffdioZeropage);
    nix::ioctl_read!(wake, 0xAA, 0x02, UffdioRange);
}

/// What became of pages that were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// So many bytes were taken; fewer than were offered if something follows that is in the way.
    Taken(u64),
    /// The first page is there already.
    Present,
    /// The layout of the memory is changing; the message that says how has to be read first.
    Changing,
    /// Nothing that waits for pages is mapped there, or two mappings meet in the middle.
    NotMapped,
    /// The process is gone, or has become another program.
    Gone,
    /// No memory is to be had, in the machine or in the container's limit.
    NoMemory,
    /// The kernel refuses for a reason that no retry mends.
    Refused(Errno),
}

/// Something a process did that its server has to know.
#[derive(Debug)]
pub(super) enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// A child was forked; what waits for pages in it is told here.
    Fork(Uffd),
    /// Memory moved.
    Remap { from: u64, to: u64, len: u64 },
    /// Memory was given up: unmapped, or to be zero when it is touched again.
    Remove { start: u64, end: u64 },
}

/// Memory of one process whose missing pages are ours to give.
#[derive(Debug)]
pub(super) struct Uffd(OwnedFd);

impl From<OwnedFd> for Uffd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Uffd {
    /// One for this process's own memory, which nothing is registered with: whether the kernel can do what is needed.
    ///
    /// # Errors
    /// `ENOSYS`: a kernel without it; `EPERM`: not allowed here; `EINVAL`: it cannot tell all events.
    pub(super) fn of_self() -> io::Result<Self> {
        // SAFETY: a system call with plain integers; the descriptor it returns is new and ours alone.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
            let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0);
            OwnedFd::from_raw_fd(fd.ok_or_else(io::Error::last_os_error)?)
        };
        let mut api = UffdioApi {
            api: API,
            features: FEATURES,
            ioctls: 0,
        };
        // SAFETY: the argument is a live local of the layout the kernel wants.
        let _ = unsafe { request::api(fd.as_raw_fd(), &raw mut api) }?;
        Ok(Self(fd))
    }

    /// Gives the pages from `at` on these contents. Whoever waits for one of them goes on.
    pub(super) fn copy(&self, at: u64, bytes: &[u8]) -> Offered {
        let mut copy = UffdioCopy {
            dst: at,
            src: bytes.as_ptr().addr() as u64,
            len: bytes.len() as u64,
            mode: 0,
            copy: 0,
        };
        // SAFETY: the argument is a live local of the layout the kernel wants. It reads `len` bytes from `src`, which is the
        // slice, and writes into pages of a process that has asked for them by registering.
        let done = unsafe { request::copy(self.0.as_raw_fd(), &raw mut copy) };
        offered(done, copy.copy, copy.len)
    }

    /// The same with pages of a mapped file; none if the kernel cannot have them: past its end, or the disk fails.
    pub(super) fn copy_mapped(&self, at: u64, mapped: &Mapped, offset: u64, len: u64) -> Option<Offered> {
        let mut copy = UffdioCopy {
            dst: at,
            src: mapped.ready(offset, len)?,
            len,
            mode: 0,
            copy: 0,
        };
        // SAFETY: the argument is a live local of the layout the kernel wants. It reads `len` bytes from `src`, which are within
        // the mapping, where a file that is shorter by now makes it fail; it writes as in `copy`.
        let done = unsafe { request::copy(self.0.as_raw_fd(), &raw mut copy) };
        match offered(done, copy.copy, len) {
            Offered::Refused(Errno::EFAULT) => None,
            offered => Some(offered),
        }
    }

    /// Makes pages from `at` on zero.
    pub(super) fn zero(&self, at: u64, len: u64) -> Offered {
        let mut zero = UffdioZeropage {
            range: UffdioRange { start: at, len },
            mode: 0,
            zeropage: 0,
        };
        // SAFETY: the argument is a live local of the layout the kernel wants; pages are changed as in `copy`.
        let done = unsafe { request::zeropage(self.0.as_raw_fd(), &raw mut zero) };
        offered(done, zero.zeropage, len)
    }

    /// Has whoever waits for these pages look again.
    pub(super) fn wake(&self, at: u64, len: u64) {
        let mut range = UffdioRange { start: at, len };
        // SAFETY: the argument is a live local of the layout the kernel wants. A process that is gone waits for nothing.
        let _ = unsafe { request::wake(self.0.as_raw_fd(), &raw mut range) };
    }

    /// Takes what has happened, oldest first; nothing if nothing has.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn events(&self) -> io::Result<Vec<Event>> {
        let mut bytes = [0_u8; MESSAGE_SIZE * MESSAGES_MAX];
        let length = match nix::unistd::read(&self.0, &mut bytes) {
            Ok(length) => length,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let messages = bytes.get(..length).unwrap_or_default();
        let events = messages.chunks_exact(MESSAGE_SIZE).filter_map(|message| {
            Some(match parse(message)? {
                Message::Fault(address) => Event::Fault(address),
                Message::Remap { from, to, len } => Event::Remap { from, to, len },
                Message::Remove { start, end } => Event::Remove { start, end },
                Message::Fork(fd) => {
                    // SAFETY: the kernel has just opened the descriptor for us in this read, and tells it once.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    Event::Fork(Self(fd))
                }
            })
        });
        Ok(events.collect())
    }
}

/// A file, mapped for the kernel to copy from. Nobody else looks into the mapping: files may be cut under it.
#[derive(Debug)]
pub(super) struct Mapped {
    start: usize,
    len: usize,
}

impl Mapped {
    /// So many bytes of a file from its beginning.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new(file: &File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let (protection, fd) = (libc::PROT_READ, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing, and no reference is made into it.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0) };
        match start == libc::MAP_FAILED {
            true => Err(io::Error::last_os_error()),
            false => Ok(Self {
                start: start.expose_provenance(),
                len,
            }),
        }
    }

    /// Where these bytes are mapped, brought in all at once: page by page it takes longer. None if they cannot be had, or
    /// nobody can tell (before Linux 5.14).
    fn ready(&self, offset: u64, len: u64) -> Option<u64> {
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        let fits = offset.checked_add(len)? <= self.len;
        let start = fits.then_some(self.start + offset)?;
        let pages = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: within the mapping, whose contents this does not change.
        let done = unsafe { libc::madvise(pages, len, libc::MADV_POPULATE_READ) };
        (done == 0).then_some(start as u64)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        let _ = unsafe { libc::munmap(start, self.len) };
    }
}

fn offered(done: nix::Result<i32>, taken: i64, len: u64) -> Offered {
    match done {
        Ok(_) => Offered::Taken(len),
        Err(Errno::EAGAIN) => match u64::try_from(taken) {
            Ok(taken) if taken > 0 => Offered::Taken(taken),
            _ => Offered::Changing,
        },
        Err(Errno::EEXIST) => Offered::Present,
        Err(Errno::ENOENT) => Offered::NotMapped,
        Err(Errno::ESRCH) => Offered::Gone,
        Err(Errno::ENOMEM) => Offered::NoMemory,
        Err(errno) => Offered::Refused(errno),
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    Fault(u64),
    Fork(i32),
    Remap { from: u64, to: u64, len: u64 },
    Remove { start: u64, end: u64 },
}

/// Reads one `struct uffd_msg`; none for a kind that was not asked for.
pub(super) fn parse(message: &[u8]) -> Option<Message> {
    let word = |at: usize| {
        let bytes = message.get(at..at.checked_add(8)?)?;
        bytes.try_into().ok().map(u64::from_ne_bytes)
    };
    Some(match *message.first()? {
        PAGEFAULT => Message::Fault(word(16)?),
        FORK => Message::Fork(i32::from_ne_bytes(message.get(8..12)?.try_into().ok()?)),
        REMAP => Message::Remap {
            from: word(8)?,
            to: word(16)?,
            len: word(24)?,
        },
        REMOVE | UNMAP => Message::Remove {
            start: word(8)?,
            end: word(16)?,
        },
        _ => return None,
    })
}

/// Memory of this process that waits for pages, for tests.
#[cfg(test)]
pub(super) mod waiting {
    use super::{AsRawFd, Uffd, UffdioRange, io, libc};

    #[repr(C)]
    struct UffdioRegister {
        range: UffdioRange,
        mode: u64,
        ioctls: u64,
    }
    const MISSING: u64 = 1;
    mod request {
        nix::ioctl_readwrite!(register, 0xAA, 0x00, super::UffdioRegister);
    }

    /// A private anonymous mapping.
    pub(in super::super) struct Mapping {
        pub(in super::super) start: u64,
        len: usize,
    }

    impl Mapping {
        pub(in super::super) fn new(len: usize) -> io::Result<Self> {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Self {
                start: start.addr() as u64,
                len,
            })
        }

        pub(in super::super) fn register(&self, uffd: &Uffd) -> io::Result<()> {
            let mut register = UffdioRegister {
                range: UffdioRange {
                    start: self.start,
                    len: self.len as u64,
                },
                mode: MISSING,
                ioctls: 0,
            };
            // SAFETY: the argument is a live local of the layout the kernel wants; the range is this mapping.
            let _ = unsafe { request::register(uffd.0.as_raw_fd(), &raw mut register) }?;
            Ok(())
        }

        /// One byte of it; waits until its page is there.
        pub(in super::super) fn byte(&self, at: usize) -> u8 {
            assert!(at < self.len);
            let address = self.start as usize + at;
            // SAFETY: within the mapping, which lives as long as this; nobody writes it but the kernel, before we read.
            unsafe { std::ptr::read_volatile(std::ptr::with_exposed_provenance::<u8>(address)) }
        }

        /// Gives pages up: they are zero when they are touched again.
        pub(in super::super) fn give_up(&self, at: usize, len: usize) {
            let address = std::ptr::with_exposed_provenance_mut(self.start as usize + at);
            // SAFETY: within the mapping, to which no reference exists.
            let done = unsafe { libc::madvise(address, len, libc::MADV_DONTNEED) };
            assert_eq!(done, 0);
        }

        /// Moves the whole of it elsewhere.
        pub(in super::super) fn moved(self) -> Self {
            let elsewhere = Self::new(self.len).expect("a mapping");
            let from = std::ptr::with_exposed_provenance_mut(self.start as usize);
            let to = std::ptr::with_exposed_provenance_mut::<libc::c_void>(elsewhere.start as usize);
            // SAFETY: both are mappings of ours of the same length, to which no reference exists.
            let at = unsafe {
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                libc::mremap(from, self.len, self.len, flags, to)
            };
            assert_eq!(at.addr() as u64, elsewhere.start);
            std::mem::forget(self);
            elsewhere
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            let start = std::ptr::with_exposed_provenance_mut(self.start as usize);
            // SAFETY: the mapping is ours, and nothing refers to it any more.
            let _ = unsafe { libc::munmap(start, self.len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_the_kernel_lays_them_out() {
        let message = |kind: u8, words: [u64; 3]| {
            let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
            bytes
        };
        for (bytes, want) in [
            (message(PAGEFAULT, [1, 0x7000, 9]), Some(Message::Fault(0x7000))),
            (message(FORK, [7, 0, 0]), Some(Message::Fork(7))),
            (
                message(REMAP, [1, 2, 3]),
                Some(Message::Remap {
                    from: 1,
                    to: 2,
                    len: 3,
                }),
            ),
            (
                message(REMOVE, [1, 2, 0]),
                Some(Message::Remove { start: 1, end: 2 }),
            ),
            (
                message(UNMAP, [1, 2, 0]),
                Some(Message::Remove { start: 1, end: 2 }),
            ),
            (message(0x17, [1, 2, 3]), None),
            (Vec::new(), None),
            (vec![REMAP; 20], None),
        ] {
            assert_eq!(parse(&bytes), want, "{bytes:?}");
        }
    }

    #[test]
    fn what_the_kernel_answers_is_told_apart() {
        for (done, taken, want) in [
            (Ok(0), 8192, Offered::Taken(8192)),
            (Err(Errno::EAGAIN), 4096, Offered::Taken(4096)),
            (Err(Errno::EAGAIN), -i64::from(libc::EAGAIN), Offered::Changing),
            (Err(Errno::EEXIST), -17, Offered::Present),
            (Err(Errno::ESRCH), 0, Offered::Gone),
            (Err(Errno::EINVAL), 0, Offered::Refused(Errno::EINVAL)),
        ] {
            assert_eq!(offered(done, taken, 8192), want);
        }
    }
}
