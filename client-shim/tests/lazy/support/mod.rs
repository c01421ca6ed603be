//! What the tests of the lazy half share: layers made by hand, a server that can misbehave, a node.

pub mod converted;
pub mod disk;
pub mod layer;
pub mod node;
pub mod server;
pub mod starter;

pub use converted::Converted;
pub use disk::Disk;
pub use headstart_loadtest::corpus::noise;
pub use layer::{Body, Item, LayerBuilder, TestLayer, What};
pub use node::Node;
pub use server::{FakeServer, Fault, Script, part};
