// Package tig stands in for nerdctl's test framework. nerdctl replaces that module by a directory of its own
// repository, which no module proxy serves, and its program reaches this one interface through a test helper.
package tig

// T is as much of a test as nerdctl's program compiles against.
type T interface {
	Log(args ...any)
	FailNow()
}
