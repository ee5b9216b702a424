package buffer

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The floors of these benchmarks are measured in the same run, as ratios mean something on any machine and absolute
// speeds do not. docs/benchmarks.md holds the table.

// floor is a file to which appended bytes are synced with the same grouping as Put: whoever waits when the disk is free
// writes for all who wait.
type floor struct {
	f     *os.File
	delay time.Duration
	turn  chan struct{}
	mu    sync.Mutex
	queue []*floorRequest
	syncs int
}

type floorRequest struct {
	b    []byte
	done chan struct{}
}

func (l *floor) put(b []byte) {
	r := &floorRequest{b, make(chan struct{})}
	l.mu.Lock()
	l.queue = append(l.queue, r)
	l.mu.Unlock()
	select {
	case <-r.done:
		return
	case l.turn <- struct{}{}:
	}
	runtime.Gosched()
	l.mu.Lock()
	batch := l.queue
	l.queue = nil
	l.mu.Unlock()
	var all []byte
	for _, r := range batch {
		all = append(all, r.b...)
	}
	if len(batch) > 0 {
		if _, err := l.f.Write(all); err != nil {
			panic(err)
		}
		pause(l.delay)
		if err := unix.Fdatasync(int(l.f.Fd())); err != nil {
			panic(err)
		}
	}
	l.syncs++
	for _, r := range batch {
		close(r.done)
	}
	<-l.turn
	<-r.done
}

// pause emulates a slow card.
func pause(d time.Duration) {
	if d > 0 {
		<-time.After(d)
	}
}

// producers runs total calls of put from n goroutines and says how many a second that were.
func producers(n, total int, put func(i int)) float64 {
	start := time.Now()
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := w; i < total; i += n {
				put(i)
			}
		})
	}
	wg.Wait()
	return float64(total) / time.Since(start).Seconds()
}

// BenchmarkPut is durable puts against raw append and fdatasync of the same bytes with the same grouping, in turns; the
// metric put/floor is the median of the ratios.
func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		producers int
		delay     time.Duration
	}{{1, 0}, {16, 0}, {64, 0}, {16, 5 * time.Millisecond}} {
		b.Run(fmt.Sprintf("producers=%d/delay=%v", c.producers, c.delay), func(b *testing.B) {
			dir := b.TempDir()
			s := open(b, filepath.Join(dir, "records.db"), Options{})
			run(b, s, make(chan error, 1))
			s.sync = func(f *file) error {
				pause(c.delay)
				return f.sync()
			}
			f, err := os.Create(filepath.Join(dir, "floor"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			l := &floor{f: f, delay: c.delay, turn: make(chan struct{}, 1)}
			total := 40 * c.producers
			if c.producers == 1 {
				total = 300
			}
			next := 0
			round := func() (ours, raw float64) {
				es := punches("SN1", next, next+total)
				next += total
				ours = producers(c.producers, total, func(i int) {
					if _, err := s.Put(b.Context(), es[i]); err != nil {
						panic(err)
					}
				})
				raw = producers(c.producers, total, func(i int) { l.put(es[i].Data) })
				return ours, raw
			}
			for range 5 {
				round() // both files grow
			}
			before := s.Stats()
			l.syncs = 0
			var ratios, speeds []float64
			for b.Loop() {
				ours, raw := round()
				ratios, speeds = append(ratios, ours/raw), append(speeds, ours)
			}
			after := s.Stats()
			b.ReportMetric(median(ratios), "put/floor")
			b.ReportMetric(median(speeds), "puts/s")
			b.ReportMetric(float64(after.Head-before.Head)/float64(after.Commits-before.Commits), "puts/commit")
			b.ReportMetric(float64(after.Head-before.Head)/float64(l.syncs), "floor-puts/sync")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkPutPages is a full read of a terminal: 100 000 records in pages of 1600 while a million are known, and the same
// once more, when all are known.
func BenchmarkPutPages(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "records.db"), Options{MaxBytes: 4 << 30})
	known(b, s, 1_000_000)
	const total, page = 100_000, 1600
	var fresh, again []float64
	for from := 1_000_000; b.Loop(); from += total {
		var pages [][]Entry
		for n := 0; n < total; n += page {
			pages = append(pages, punches("SN1", from+n, from+min(n+page, total)))
		}
		runtime.GC()
		for _, took := range []*[]float64{&fresh, &again} {
			start := time.Now()
			for _, p := range pages {
				if _, err := s.Put(b.Context(), p...); err != nil {
					b.Fatal(err)
				}
			}
			*took = append(*took, time.Since(start).Seconds())
		}
	}
	b.ReportMetric(median(fresh), "s/100k-new")
	b.ReportMetric(median(again), "s/100k-known")
	b.ReportMetric(0, "ns/op")
}

// known makes s know n punches of SN1, which wait for no uplink.
func known(b *testing.B, s *Store, n int) {
	real := s.sync
	s.sync = func(*file) error { return nil }
	for from := 0; from < n; from += 10_000 {
		put(b, s, 10_000, punches("SN1", from, from+10_000)...)
	}
	s.sync = real
}

// BenchmarkBacklog opens a file in which a million records wait, reads the first, and drains it as an uplink does: pages of
// 100, the place moving, segments given back. spread is the slowest tenth of the drain against the fastest.
func BenchmarkBacklog(b *testing.B) {
	const total, page = 1_000_000, 100
	var first, spread, speed []float64
	for b.Loop() {
		b.StopTimer()
		path := filepath.Join(b.TempDir(), "records.db")
		s := open(b, path, Options{})
		if err := s.SetUplinks(b.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
			b.Fatal(err)
		}
		known(b, s, total)
		s.Close()
		b.StartTimer()
		start := time.Now()
		s = open(b, path, Options{})
		if rs, err := s.Read(b.Context(), 0, s.Head(), 1, 1<<20); err != nil || len(rs) != 1 {
			b.Fatal(len(rs), err)
		}
		first = append(first, float64(time.Since(start).Microseconds())/1000)
		if err := s.SetUplinks(b.Context(), []Uplink{{ID: "cloud", Required: true}}); err != nil {
			b.Fatal(err)
		}
		stop := run(b, s, make(chan error, 1))
		var tenths []float64
		begin := time.Now()
		for after, tenth := int64(0), time.Now(); after < total; {
			rs, err := s.Read(b.Context(), after, s.Head(), page, 1<<20)
			if err != nil || len(rs) == 0 {
				b.Fatal(len(rs), err)
			}
			after = rs[len(rs)-1].Seq
			s.SetPlace("cloud", Place{Done: after, Gap: total, Live: total})
			if after%(total/10) == 0 {
				tenths = append(tenths, time.Since(tenth).Seconds())
				tenth = time.Now()
			}
		}
		speed = append(speed, total/time.Since(begin).Seconds())
		spread = append(spread, slices.Min(tenths)/slices.Max(tenths))
		stop()
		s.Close()
	}
	b.ReportMetric(median(first), "ms-to-first")
	b.ReportMetric(median(spread), "slowest/fastest-tenth")
	b.ReportMetric(median(speed), "records/s")
	b.ReportMetric(0, "ns/op")
}
