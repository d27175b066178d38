//! The engine from outside: one binary for all integration tests.
mod configs;
mod golden;
mod golden_cpu;
mod golden_gpu;
mod gpu;
mod loading;
mod observing;
mod support;
mod text;
