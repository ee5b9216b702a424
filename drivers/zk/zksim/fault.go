package zksim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gatepost/drivers/zk/zkproto"
)

// Fault is one way of misbehaving. Faults of different kinds add up; setting one again replaces it. Where count limits a
// fault, 0 means until it is cleared, unless a default stands here.
//
//	kind        bytes                      count                duration              code, command
//	drop        cut after so many more     times, default 1
//	            bytes; 0: at once
//	delay                                  answers              each waits, required
//	throttle    per second, required
//	split       per write, required                             pause between writes
//	glue                                   frames per write, required
//	garble      place in the frame; 0:     frames, default 1
//	            middle of the payload
//	checksum                               frames, one too low
//	stall       of bulk answers until      times, default 1     silent for; 0: for ever
//	            then; 0: at once
//	refuse                                 times                lasts                 code: answers with it, only
//	                                                                                  this command if one is given;
//	                                                                                  0: resets new connections
//	reboot                                                      away for, default 2s
//	wrap                                   records that go and
//	                                       come, default 1
//	clear       (the log is emptied)
//	rewrite     (as many records as before, all others)
//	clock                                                       jump, required, may be negative
//	silent                                 requests             lasts
//	foreign                                answers, each after an answer of another session and a stale one
//	impossible                             records of February 30th, default 1
//	miscount                               records more than there are in free sizes, required, may be negative
//	prefix                                 bytes more than there are in the length before bulk data, likewise
//	none        (clears all, switches on)
type Fault struct {
	Kind     string
	Bytes    int
	Count    int
	Duration time.Duration
	Code     int
	Command  int
}

// fault is a Fault at work.
type fault struct {
	Fault
	left  int       // bytes until it strikes
	since time.Time // set at
}

// faultKinds says what each kind needs and takes: a letter per parameter, capital where it must be there: b, c, d and x
// for code and command. "-" allows negative values.
var faultKinds = map[string]string{
	"drop": "bc", "delay": "cD", "throttle": "B", "split": "Bd", "glue": "C", "garble": "bc", "checksum": "c", "stall": "bcd",
	"refuse": "cdx", "reboot": "d", "wrap": "c", "clear": "", "rewrite": "", "clock": "D-", "silent": "cd", "foreign": "c",
	"impossible": "c", "miscount": "C-", "prefix": "C-", "none": "",
}

// maxFaultCount bounds what a fault may append to the log.
const maxFaultCount = 1_000_000

func (f Fault) check() error {
	takes, ok := faultKinds[f.Kind]
	if !ok {
		return fmt.Errorf("fault %q: want one of %s", f.Kind, strings.Join(slices.Sorted(maps.Keys(faultKinds)), ", "))
	}
	var errs []error
	param := func(name, letter string, v int64) {
		needs := strings.Contains(takes, strings.ToUpper(letter))
		switch {
		case v == 0 && needs:
			errs = append(errs, fmt.Errorf("fault %q needs %s", f.Kind, name))
		case v != 0 && !needs && !strings.Contains(takes, letter):
			errs = append(errs, fmt.Errorf("fault %q takes no %s", f.Kind, name))
		case v < 0 && !strings.Contains(takes, "-"):
			errs = append(errs, fmt.Errorf("fault %q: %s is negative", f.Kind, name))
		}
	}
	param("bytes", "b", int64(f.Bytes))
	param("count", "c", int64(f.Count))
	param("duration", "d", int64(f.Duration))
	param("code", "x", int64(f.Code))
	param("command", "x", int64(f.Command))
	if f.Count > maxFaultCount || f.Count < -maxFaultCount {
		errs = append(errs, fmt.Errorf("fault %q: count is beyond %d", f.Kind, maxFaultCount))
	}
	if f.Code > 0xffff || f.Command > 0xffff {
		errs = append(errs, fmt.Errorf("fault %q: a code is beyond 65535", f.Kind))
	}
	if f.Command != 0 && f.Code == 0 {
		errs = append(errs, errors.New(`fault "refuse" with a command needs a code`))
	}
	return errors.Join(errs...)
}

// Fault makes the terminal misbehave.
func (t *Terminal) Fault(f Fault) error {
	if err := f.check(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.o.Log.Info("fault", "verb", f.Kind)
	size := t.o.RecordSize
	switch f.Kind {
	case "none":
		clear(t.faults)
		t.off, t.back = false, time.Time{}
	case "drop":
		if f.Bytes == 0 {
			t.hangUp(nil)
			break
		}
		t.set(f)
	case "reboot":
		if f.Duration == 0 {
			f.Duration = bootTime
		}
		t.restart(f.Duration, nil)
	case "wrap":
		n := max(1, f.Count)
		t.log = t.log[min(n, t.records())*size:]
		e := entry{uid: 1, id: "1", verify: zkproto.VerifyFinger, time: t.clock()}
		for i := range n {
			if len(t.users) > 0 {
				u := &t.users[i%len(t.users)]
				e.uid, e.id = u.uid, u.id
			}
			t.add(&e)
		}
	case "clear":
		t.log = nil
	case "rewrite":
		t.log = makeLog(t.records(), size, t.users, 1)
	case "clock":
		t.offset += f.Duration
	case "impossible":
		e := entry{uid: 1, id: "1", verify: zkproto.VerifyFinger, time: civil{2026, 2, 30, 10, 0, 0}}
		for range max(1, f.Count) {
			t.add(&e)
		}
	default:
		t.set(f)
	}
	return nil
}

// set makes f last. t.mu is held.
func (t *Terminal) set(f Fault) {
	if f.Count == 0 && (f.Kind == "drop" || f.Kind == "garble" || f.Kind == "stall") {
		f.Count = 1
	}
	t.faults[f.Kind] = &fault{Fault: f, left: f.Bytes, since: time.Now()}
}

// fault is the one of that kind at work, or nil. t.mu is held.
func (t *Terminal) fault(kind string) *fault {
	f := t.faults[kind]
	if f != nil && (kind == "refuse" || kind == "silent") && f.Duration > 0 && time.Since(f.since) > f.Duration {
		delete(t.faults, kind)
		return nil
	}
	return f
}

// spend counts one use of f. t.mu is held.
func (t *Terminal) spend(f *fault) {
	f.left = f.Bytes
	if f.Count > 0 {
		if f.Count--; f.Count == 0 {
			delete(t.faults, f.Kind)
		}
	}
}

// strike is fault and spend: it tells the fault's parameters as they were when it struck.
func (t *Terminal) strike(kind string) (Fault, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.fault(kind)
	if f == nil {
		return Fault{}, false
	}
	was := f.Fault
	t.spend(f)
	return was, true
}

// standing tells of a fault that does not wear out.
func (t *Terminal) standing(kind string) (Fault, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.fault(kind); f != nil {
		return f.Fault, true
	}
	return Fault{}, false
}

// spoil applies what alters a frame.
func (t *Terminal) spoil(frame []byte) {
	if _, ok := t.strike("checksum"); ok {
		sum := frame[zkproto.PrefixLen+2:]
		le.PutUint16(sum, le.Uint16(sum)-1)
	}
	if f, ok := t.strike("garble"); ok {
		at := f.Bytes
		if at == 0 || at >= len(frame) {
			at = (zkproto.PrefixLen + len(frame)) / 2
		}
		frame[at] ^= 0x55
	}
}

// step is how far a write may go before something happens.
type step struct {
	n     int           // bytes
	rate  int           // bytes per second; 0: as fast as it goes
	pause time.Duration // then
	stall bool          // then say nothing for pause; 0: for ever
	drop  bool          // then hang up
}

// plan says how far a write of n bytes may go.
func (t *Terminal) plan(n int, bulk bool) step {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := step{n: n}
	if f := t.fault("split"); f != nil && n > f.Bytes {
		s.n, s.pause = f.Bytes, f.Duration
	}
	if f := t.fault("throttle"); f != nil {
		s.rate = f.Bytes
		s.n = min(s.n, max(1, f.Bytes/50))
	}
	if f := t.fault("stall"); f != nil && bulk {
		if f.left <= s.n {
			s.n, s.stall, s.pause = f.left, true, f.Duration
			t.spend(f)
		} else {
			f.left -= s.n
		}
	}
	if f := t.fault("drop"); f != nil {
		if f.left <= s.n {
			s.n, s.drop = f.left, true
			t.spend(f)
		} else {
			f.left -= s.n
		}
	}
	return s
}

// hangUp resets every connection but one, which may be nil. t.mu is held.
func (t *Terminal) hangUp(but *session) {
	for s := range t.sessions {
		if s != but {
			s.kill()
		}
	}
}

// bootTime is how long a terminal is away when it restarts.
const bootTime = 2 * time.Second

// restart drops everyone but one, who has an answer to come, is away for a while and comes back enabled, with other
// session ids. t.mu is held.
func (t *Terminal) restart(away time.Duration, but *session) {
	t.hangUp(but)
	t.back = time.Now().Add(away)
	t.disabled = false
	t.next += 0x0101
}
