package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gatepost"

	"golang.org/x/sys/unix"
)

// LockDir takes a data directory for this process. The lock (flock on gatepost.lock) falls with the process, so a power
// cut leaves none behind. Release lets it go earlier.
func LockDir(dir string) (release func() error, err error) {
	path := filepath.Join(dir, "gatepost.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, &gatepost.Fault{Class: gatepost.Misconfigured, Err: fmt.Errorf("data directory: %w", err),
			Hint: "agent.data_dir must be a directory that this user may write to"}
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		holder, _ := os.ReadFile(path)
		return nil, &gatepost.Fault{Class: gatepost.Misconfigured,
			Err:  fmt.Errorf("another gatepost (process %s) already works in %s", strings.TrimSpace(string(holder)), dir),
			Hint: "stop it first, or give this one its own agent.data_dir"}
	}
	if err := f.Truncate(0); err == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid()) // only for the message above
	}
	return f.Close, nil
}
