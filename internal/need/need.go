// Package need says what a test needs of the machine beyond Go. Where it is missing the test is left out, and "make test"
// has said so; in CI (CI=true) nothing may be left out, and the test fails. Only tests import it.
package need

import (
	"os"
	"os/exec"
	"testing"
)

// Find is the path of a program, also of one that Debian keeps where only root looks.
func Find(name string) (path string, ok bool) {
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(p); err == nil {
			return path, true
		}
	}
	return "", false
}

// Program is the path of a program that the test cannot do without.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, ok := Find(name)
	if !ok {
		missing(t, name)
	}
	return path
}

// Root is for tests that mount a file system.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing, and in CI nothing may be left out", what)
	}
	t.Skipf("left out: needs %s", what)
}
