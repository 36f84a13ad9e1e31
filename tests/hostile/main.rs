//! A made-up kernel sends the adapter what no kernel would send: no panic, no inode lost, nothing
//! leaked, nothing outside of BACKING touched. One end of a socket pair takes the place of
//! `/dev/fuse`.

mod kernel;
mod ops;
mod player;
mod regressions;
mod scene;
mod smoke;
mod storm;
