package buffer

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkWear measures what a punch costs the card over its whole life: put, confirmed, deleted, refusal of doubles
// included. Commits are paced 10 ms apart, as tight loops hide the journal. Needs root.
func BenchmarkWear(b *testing.B) {
	for _, c := range []struct{ group, commits int }{{1, 2000}, {10, 1000}, {100, 500}} {
		b.Run(fmt.Sprintf("group=%d", c.group), func(b *testing.B) {
			var writes, flushes, ours []float64
			for b.Loop() {
				w, f, o := wear(b, c.group, c.commits)
				writes, flushes, ours = append(writes, w), append(flushes, f), append(ours, o)
			}
			b.ReportMetric(median(writes), "KiB/punch")
			b.ReportMetric(median(flushes), "flushes/commit")
			b.ReportMetric(median(ours), "counted-KiB/punch")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// wear puts punches in so many commits on a device of their own. It returns the KiB that the device wrote for each punch,
// the flushes it got for each commit, and the KiB for each punch by our own count.
func wear(b *testing.B, group, commits int) (written, flushed, counted float64) {
	d := newDisk(b, 192)
	s := open(b, filepath.Join(d.dir, "records.db"), Options{})
	if err := s.SetUplinks(b.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
		b.Fatal(err)
	}
	stop := run(b, s, make(chan error, 1))
	unix.Sync()
	before, flushesBefore := d.counters()
	start := s.Stats()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := range commits {
		<-tick.C
		put(b, s, group, punches("SN1", i*group, (i+1)*group)...)
		s.SetPlace("cloud", at(s.Head()))
	}
	_, flushes := d.counters()
	stop()
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	unix.Sync()
	after, _ := d.counters()
	kib := 1024 * float64(group*commits)
	return float64(after-before) / kib, float64(flushes-flushesBefore) / float64(commits), float64(s.Stats().Written-start.Written) / kib
}
