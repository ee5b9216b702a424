package buffer

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"gatepost"
)

// TestRandomUseAgainstAModel does what the agent does in random order, closing and opening the file in between, and
// compares with a model that is a few maps.
func TestRandomUseAgainstAModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomUse(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func randomUse(t *testing.T, r *rand.Rand) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, path, Options{})
	uplinks := []Uplink{{ID: "a", Required: true, FromOldest: true}, {ID: "b", FromOldest: true}}
	type fact struct {
		source string
		n      int
	}
	seen := make(map[fact]bool)
	var log []fact // log[i] has number i+1
	places := map[string]Place{"a": {}, "b": {}}
	set := func() {
		if err := s.SetUplinks(t.Context(), uplinks); err != nil {
			t.Fatal(err)
		}
	}
	set()
	for range 100 {
		switch r.IntN(8) {
		case 0, 1, 2: // put a stretch, often over known ground
			source, from, n := fmt.Sprint("SN", r.IntN(3)), r.IntN(4000), 1+r.IntN(300)
			if r.IntN(2) == 0 {
				n = 1 + r.IntN(3)
			}
			want := 0
			for i := from; i < from+n; i++ {
				if f := (fact{source, i}); !seen[f] {
					seen[f] = true
					log = append(log, f)
					want++
				}
			}
			put(t, s, want, punches(source, from, from+n)...)
		case 3, 4: // an uplink gets on
			id := uplinks[r.IntN(2)].ID
			p, head := places[id], int64(len(log))
			switch {
			case p.Done < p.Gap:
				p.Done += r.Int64N(p.Gap - p.Done + 1)
			case r.IntN(4) == 0:
				p.Gap, p.Live = head, head
			default:
				p = at(p.Live)
			}
			p.Live += r.Int64N(head - p.Live + 1)
			if p.Done == p.Gap {
				p = at(p.Live)
			}
			s.SetPlace(id, p)
			places[id] = p
		case 5: // forget a day
			source := fmt.Sprint("SN", r.IntN(3))
			day := punch(source, r.IntN(4000)).Minute / gatepost.MinutesPerDay
			var want int64
			for f := range seen {
				if f.source == source && punch(source, f.n).Minute/gatepost.MinutesPerDay == day {
					delete(seen, f)
					want++
				}
			}
			if n, err := s.Prune(t.Context(), source, func(d int64) bool { return d != day }); err != nil || n != want {
				t.Fatalf("pruned %d, want %d: %v", n, want, err)
			}
		case 6:
			if err := s.upkeep(t.Context()); err != nil {
				t.Fatal(err)
			}
		case 7: // stop, orderly or not: what was only in memory may be lost, as if it had never been
			if err := s.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.Close()
			s = open(t, path, Options{})
			set()
		}
		st := s.Stats()
		if st.Head != int64(len(log)) || st.Seen != int64(len(seen)) {
			t.Fatalf("head %d seen %d, want %d and %d", st.Head, st.Seen, len(log), len(seen))
		}
		needed := int64(len(log))
		for id, want := range places {
			if got := s.Place(id); got != want {
				t.Fatalf("%s is at %+v, want %+v", id, got, want)
			}
			needed = min(needed, want.Done)
			if b := st.Uplinks[id]; b.Records != want.Gap-want.Done+st.Head-want.Live {
				t.Fatalf("%s: %d wait, not %d", id, want.Gap-want.Done+st.Head-want.Live, b.Records)
			}
		}
		rs, err := s.Read(t.Context(), needed, st.Head, 10_000, 1<<30)
		if err != nil || int64(len(rs)) != st.Head-needed {
			t.Fatalf("read %d records after %d of %d: %v", len(rs), needed, st.Head, err)
		}
		for i, got := range rs {
			f := log[needed+int64(i)]
			if want := punch(f.source, f.n); got.Seq != needed+int64(i)+1 || got.ID != want.ID || string(got.Data) != string(want.Data) {
				t.Fatalf("record %d is %s, want %+v", got.Seq, got.Data, f)
			}
		}
	}
}
