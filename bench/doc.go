// Package bench measures gatepost as a whole: the built program, Debian's mosquitto and simulated terminals, each in a
// process of its own, on loopback. It holds benchmarks only; docs/benchmarks.md is the table of what they must reach, and
// "make bench" sets them beside it.
package bench
