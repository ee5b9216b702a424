//go:build bench

package buffer

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWear measures what a punch costs the card over its whole life: put, confirmed, deleted, refusal of doubles included.
// Commits are paced 10 ms apart, as tight loops hide the journal. Run by make bench; needs root.
func TestWear(t *testing.T) {
	for _, c := range []struct {
		group, commits int
		limit          float64 // bytes per punch
	}{{1, 2000, 8 << 10}, {10, 1000, 2 << 10}, {100, 500, 0.8 * (1 << 10)}} {
		t.Run(fmt.Sprintf("%d per commit", c.group), func(t *testing.T) {
			d := newDisk(t, 192)
			s := open(t, filepath.Join(d.dir, "records.db"), Options{})
			if err := s.SetUplinks(t.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
				t.Fatal(err)
			}
			stop := run(t, s, make(chan error, 1))
			unix.Sync()
			before, flushesBefore := d.counters()
			start := s.Stats()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for i := range c.commits {
				<-tick.C
				put(t, s, c.group, punches("SN1", i*c.group, (i+1)*c.group)...)
				s.SetPlace("cloud", at(s.Head()))
			}
			_, flushes := d.counters()
			stop()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			unix.Sync()
			after, _ := d.counters()
			n := float64(c.group * c.commits)
			perPunch, perCommit := float64(after-before)/n, float64(flushes-flushesBefore)/float64(c.commits)
			t.Logf("%.0f bytes per punch, %.2f flushes per commit, %.0f bytes per punch by our own count",
				perPunch, perCommit, float64(s.Stats().Written-start.Written)/n)
			if perPunch > c.limit || perCommit > 1.1 {
				t.Errorf("%.0f bytes per punch, want at most %.0f; %.2f flushes per commit, want at most 1.1", perPunch, c.limit, perCommit)
			}
		})
	}
}
