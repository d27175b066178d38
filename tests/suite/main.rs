//! The engine from outside: one binary for all integration tests.
mod agreeing;
mod browser;
mod comparing;
mod configs;
mod exam;
mod golden;
mod golden_cpu;
mod golden_gpu;
mod gpu;
mod loading;
mod observing;
mod reference;
mod shaders;
mod support;
mod text;
mod tidy;
mod watching;
