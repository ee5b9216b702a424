package zk

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// peer is the terminal's end of a link, played by a test step by step.
type peer struct {
	t    *testing.T
	conn net.Conn
}

// newPeer makes a link of session fb2f whose next request is number reply.
func newPeer(t *testing.T, reply uint16, edit func(*options)) (*session, peer) {
	t.Helper()
	ours, theirs := net.Pipe()
	d := newTestDevice(t, "10.0.0.9", func(o *options) {
		o.Timeout = 200 * time.Millisecond
		if edit != nil {
			edit(o)
		}
	})
	s := &session{device: d, l: newLink(ours, d.env.Log, d.Timeout, d.Lenient)}
	s.l.session, s.l.reply = 0xfb2f, reply
	t.Cleanup(func() {
		theirs.Close()
		s.Close()
	})
	return s, peer{t, theirs}
}

// want reads a frame from the driver.
func (p peer) want(frameHex string) {
	want := unhex(p.t, frameHex)
	got := make([]byte, len(want))
	p.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := io.ReadFull(p.conn, got); err != nil || !bytes.Equal(got, want) {
		p.t.Errorf("driver sent %x (%v), want %s", got[:n], err, frameHex)
	}
}

// request reads any frame from the driver.
func (p peer) request() frame {
	p.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	f, err := readFrame(p.conn)
	if err != nil {
		p.t.Errorf("no request came: %v", err)
	}
	return f
}

func (p peer) send(b []byte) {
	p.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := p.conn.Write(b); err != nil {
		p.t.Errorf("driver does not read: %v", err)
	}
}

func (p peer) sendHex(s string) { p.send(unhex(p.t, s)) }

// play runs the terminal's side beside call, and returns call's error after both ended.
func play(t *testing.T, terminal func(), call func() error) error {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		terminal()
	}()
	err := call()
	<-done
	return err
}

// TestConversation holds the driver's requests and its reading of the answers against the vectors, byte by byte.
func TestConversation(t *testing.T) {
	var out []byte
	for _, step := range []struct {
		name       string
		reply      uint16
		wants, has string
		call       func(s *session) error
	}{
		{"time", 3, "5050827d08000000c90004042ffb0300", "5050827d0c000000d00761d62ffb03007ef41c32", func(s *session) error {
			w, err := s.Time(t.Context())
			return expect(err, string(w), "2026-02-28T23:59:58")
		}},
		{"serial", 5, "5050827d160000000b00bcbb2ffb05007e53657269616c4e756d62657200",
			"5050827d21000000d007ef642ffb05007e53657269616c4e756d6265723d4750303030303030303100", func(s *session) error {
				v, err := s.option(t.Context(), "~SerialNumber")
				return expect(err, v, "GP00000001")
			}},
		{"unlock 5 s in tenths", 7, "5050827d0c0000001f0078042ffb070032000000", "5050827d08000000d007f8fc2ffb0700", func(s *session) error {
			return s.Unlock(t.Context(), 1, 5*time.Second)
		}},
		{"unlock half a second", 7, "5050827d0c0000001f00a5042ffb070005000000", "5050827d08000000d007f8fc2ffb0700", func(s *session) error {
			return s.Unlock(t.Context(), 1, 450*time.Millisecond)
		}},
		{"option unknown", 6, hex.EncodeToString(frame{zkproto.CmdOptionRead, 0xfb2f, 6, []byte("nope\x00")}.append(nil)),
			"5050827d08000000d107f8fc2ffb0600", func(s *session) error {
				v, err := s.option(t.Context(), "nope")
				return expect(err, v, "")
			}},
		{"version", 21, "5050827d080000004c046f002ffb1500", "5050827d1d000000d00769ad2ffb150056657220362e363020417072203238203230313500", func(s *session) error {
			b, err := s.l.do(t.Context(), normal, "version", zkproto.CmdGetVersion, nil)
			return expect(err, s.tidy(b), "Ver 6.60 Apr 28 2015")
		}},
		{"number wraps", 65534, "5050827d08000000c90008042ffbfeff", hex.EncodeToString(frame{zkproto.AckOK, 0xfb2f, 65534, []byte{0, 0, 0, 0}}.append(nil)), func(s *session) error {
			w, err := s.Time(t.Context())
			if s.l.reply != 0 {
				return fmt.Errorf("next number is %d, want 0", s.l.reply)
			}
			return expect(err, string(w), "2000-01-01T00:00:00")
		}},
		{"event ack", 0, "5050827d08000000d007fffc2ffb0000", "", func(s *session) error { return s.l.ack(t.Context()) }},
		{"log, inline 2x40", 11, "5050827d13000000df05e4f12ffb0b00010d000000000000000000",
			"5050827d5c000000dd05c6e900000b00500000000d00393939313131333333000000000000000000000000000000016bb368230000000000ff0000000e003131323234343838000000000000000000000000000000000f7ef41c32010000000000000000",
			func(s *session) error { return s.collect(t.Context(), &out, 80) }},
		{"log, inline 2x16", 11, "5050827d13000000df05e4f12ffb0b00010d000000000000000000",
			"5050827d2c000000dd05bc1a00000b002000000015000000ec154f2300000000000000001600000085824f230100000000000000",
			func(s *session) error { return s.collect(t.Context(), &out, 32) }},
		{"log, ack data, empty", 11, "5050827d13000000df05e4f12ffb0b00010d000000000000000000",
			hex.EncodeToString(frame{zkproto.AckData, 0xfb2f, 11, make([]byte, 4)}.append(nil)),
			func(s *session) error { return s.collect(t.Context(), &out, 0) }},
		{"log, ok without data", 11, "5050827d13000000df05e4f12ffb0b00010d000000000000000000",
			hex.EncodeToString(frame{zkproto.AckOK, 0xfb2f, 11, nil}.append(nil)),
			func(s *session) error { return s.collect(t.Context(), &out, 0) }},
	} {
		t.Run(step.name, func(t *testing.T) {
			s, p := newPeer(t, step.reply, nil)
			err := play(t, func() {
				p.want(step.wants)
				if step.has != "" {
					p.sendHex(step.has)
				}
			}, func() error { return step.call(s) })
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func expect(err error, got, want string) error {
	if err == nil && got != want {
		err = fmt.Errorf("got %q, want %q", got, want)
	}
	return err
}

// collect reads the log's bytes.
func (s *session) collect(ctx context.Context, out *[]byte, want int) error {
	d, err := s.l.prepare(ctx, attLog)
	if err != nil {
		return err
	}
	*out = nil
	err = d.read(ctx, 0, func(p []byte) error {
		*out = append(*out, p...)
		return nil
	})
	if d.stream != nil {
		d.stream.end()
	}
	if err == nil && len(*out) != want {
		err = fmt.Errorf("%d bytes, want %d", len(*out), want)
	}
	return err
}

func TestLogin(t *testing.T) {
	s, p := newPeer(t, 0, nil)
	s.l.session = 0
	err := play(t, func() {
		p.want("5050827d08000000e80317fc00000000")
		p.sendHex("5050827d08000000d5075bb2cf450000")
		p.want("5050827d0c0000004e044e2ccf450100614d323c")
		p.sendHex("5050827d08000000d0075fb2cf450100")
		p.want("5050827d08000000e90345b6cf450200")
		p.sendHex(hex.EncodeToString(frame{zkproto.AckOK, 0x45cf, 2, nil}.append(nil)))
	}, func() error {
		defer s.Close()
		return s.l.login(t.Context(), 12)
	})
	if err != nil {
		t.Error(err)
	}
}

// TestSplitEverywhere cuts the multi-frame answer in two at every byte.
func TestSplitEverywhere(t *testing.T) {
	data := make([]byte, 2032)
	le.PutUint32(data, 2028)
	for i := range 2028 {
		data[4+i] = byte(7*i + 3)
	}
	wire := recipe(data)
	for cut := range wire {
		s, p := newPeer(t, 20, nil)
		var got []byte
		err := play(t, func() {
			p.request()
			if cut > 0 {
				p.send(wire[:cut])
			}
			p.send(wire[cut:])
		}, func() error { return s.collect(t.Context(), &got, 2028) })
		if err != nil || !bytes.Equal(got, data[4:]) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		p.conn.Close()
		s.Close()
	}
	r := iotest.OneByteReader(bytes.NewReader(wire))
	for range 5 {
		if _, err := readFrame(r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFaultyAnswers has a named case per fault of a terminal, with the exact words.
func TestFaultyAnswers(t *testing.T) {
	ok := func(session, reply uint16, data ...byte) []byte {
		return frame{zkproto.AckOK, session, reply, data}.append(nil)
	}
	for _, tt := range []struct {
		name     string
		lenient  bool
		terminal func(p peer)
		want     string // error; empty: the right time comes
	}{
		{"silent", false, func(p peer) {}, "get the time: no answer in 200ms"},
		{"closes", false, func(p peer) { p.conn.Close() }, "get the time: the terminal closed the connection"},
		{"stops in mid-frame", false, func(p peer) { p.sendHex("5050827d0c000000d00761d6") }, "get the time: no answer in 200ms"},
		{"closes in mid-frame", false, func(p peer) { p.sendHex("5050827d0c000000d00761d6"); p.conn.Close() }, "get the time: the terminal closed the connection in mid-frame"},
		{"garbled", false, func(p peer) { p.sendHex("5050827d0c000000d00761d62ffb03007ef41c33") }, "get the time: frame with checksum d661, want d561"},
		{"garbled, lenient", true, func(p peer) { p.sendHex("5050827d0c000000d00760d62ffb03007ef41c32") }, ""},
		{"oversized", false, func(p peer) { p.sendHex("5050827dffffff7f") }, "get the time: a frame of 2147483647 bytes is announced; 8 to 1048584 are possible"},
		{"hostile", false, func(p peer) { p.send([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }, "get the time: not a frame: it starts with 48545450"},
		{"another session's frames", false, func(p peer) {
			p.send(ok(0x1111, 9, 1, 2, 3, 4))
			p.sendHex("5050827d0c000000d00761d62ffb03007ef41c32")
		}, ""},
		{"right number, another session", false, func(p peer) { p.send(ok(0x1111, 3, 0x7e, 0xf4, 0x1c, 0x32)) }, ""},
		{"yesterday's answer", false, func(p peer) { p.send(ok(0xfb2f, 2, 1, 2, 3, 4)) }, "get the time: no answer in 200ms, only 1 to older requests"},
		{"yesterday's answer first", false, func(p peer) {
			p.send(ok(0xfb2f, 2, 1, 2, 3, 4))
			p.sendHex("5050827d0c000000d00761d62ffb03007ef41c32")
		}, ""},
		{"event first", false, func(p peer) {
			p.sendHex("5050827d09000000f401a7fc0001000064")
			p.sendHex("5050827d0c000000d00761d62ffb03007ef41c32")
		}, ""},
		{"short", false, func(p peer) { p.send(ok(0xfb2f, 3, 1, 2)) }, "get the time: an answer of 2 bytes, want 4"},
		{"unknown command", false, func(p peer) { p.send(frame{zkproto.AckUnknown, 0xfb2f, 3, nil}.append(nil)) }, "get the time: the terminal answered 65535 (unknown command)"},
		{"unexpected code", false, func(p peer) { p.send(frame{1234, 0xfb2f, 3, nil}.append(nil)) }, "get the time: the terminal answered with the unexpected code 1234"},
		{"logged out", false, func(p peer) { p.send(frame{zkproto.AckUnauth, 0xfb2f, 3, nil}.append(nil)) }, "get the time: the terminal answered 2005 (not logged in)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, p := newPeer(t, 3, func(o *options) { o.Lenient = tt.lenient })
			err := play(t, func() {
				p.want("5050827d08000000c90004042ffb0300")
				tt.terminal(p)
			}, func() error {
				w, err := s.Time(t.Context())
				return expect(err, string(w), "2026-02-28T23:59:58")
			})
			if err == nil && tt.want != "" || err != nil && err.Error() != tt.want {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestFaultyBulk is the same for bulk answers.
func TestFaultyBulk(t *testing.T) {
	const size = 84
	f := func(code, session uint16, reply uint16, data []byte) []byte {
		return frame{code, session, reply, data}.append(nil)
	}
	u32 := func(ns ...uint32) (b []byte) {
		for _, n := range ns {
			b = le.AppendUint32(b, n)
		}
		return b
	}
	body := append(u32(80), make([]byte, 80)...)
	large := append([]byte{0}, u32(size, size, 0)...)
	stop := "read the log: "
	for _, tt := range []struct {
		name     string
		terminal func(p peer)
		want     string
	}{
		{"announces without a size", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 11, []byte{1, 2}))
		}, stop + "the terminal announces data without a size: 0102"},
		{"announces too much", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 11, u32(0xffffffff)))
		}, stop + "the terminal announces 4294967295 bytes, over the limit of 268435456"},
		{"less than announced", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 11, u32(size)))
			p.send(f(zkproto.CmdData, 0, 11, body[:40]))
			p.send(f(zkproto.AckOK, 0, 11, nil))
		}, stop + "the terminal sent 40 bytes of the 84 it announced"},
		{"more than announced", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 11, u32(size)))
			p.send(f(zkproto.CmdData, 0, 11, append(body, 1)))
		}, stop + "the terminal sent 85 bytes where it announced 84"},
		{"stops in the middle", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 11, u32(size)))
			p.send(f(zkproto.CmdData, 0, 11, body[:40]))
		}, stop + "no answer in 200ms"},
		{"closes in the middle", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 11, u32(size)))
			p.send(f(zkproto.CmdData, 0, 11, body[:40]))
			p.conn.Close()
		}, stop + "the terminal closed the connection"},
		{"breaks off with an error", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 11, u32(size)))
			p.send(f(zkproto.CmdData, 0, 11, body[:40]))
			p.send(f(zkproto.AckError, 0, 11, nil))
		}, stop + "after 40 of 84 bytes: the terminal answered 2001 (error)"},
		{"count larger than the set", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdData, 0, 11, append(u32(81), make([]byte, 80)...)))
		}, stop + "the data set counts 81 bytes, the terminal announced 80"},
		{"chunk larger than asked", func(p peer) {
			p.request()
			p.send(f(zkproto.AckOK, 0, 11, large))
			p.request()
			p.send(f(zkproto.CmdPrepareData, 0, 12, u32(size+1)))
		}, stop + "the terminal announces 85 bytes where 84 were asked for"},
		{"chunk refused", func(p peer) {
			p.request()
			p.send(f(zkproto.AckOK, 0, 11, large))
			p.request()
			p.send(f(zkproto.AckError, 0, 12, nil))
		}, stop + "byte 0: the terminal answered 2001 (error)"},
		{"chunk empty", func(p peer) {
			p.request()
			p.send(f(zkproto.AckOK, 0, 11, large))
			p.request()
			p.send(f(zkproto.CmdData, 0, 12, nil))
		}, stop + "the terminal stopped at byte 0 of 84"},
		{"refused both ways", func(p peer) {
			p.request()
			p.send(f(zkproto.AckUnknown, 0, 11, nil))
			p.request()
			p.send(f(zkproto.AckError, 0, 12, nil))
		}, stop + "the terminal answered 65535 (unknown command)"},
		{"access-control mode", func(p peer) {
			p.request()
			p.send(f(zkproto.AckMode, 0, 11, nil))
			p.request()
			p.send(f(zkproto.AckError, 0, 12, nil))
		}, stop + "the terminal answered 4989 (not in this device mode)"},
		{"chunk short, then the rest", func(p peer) {
			p.request()
			p.send(f(zkproto.AckOK, 0, 11, large))
			p.request()
			p.send(f(zkproto.CmdData, 0, 12, body[:3]))
			if r := p.request(); le.Uint32(r.data) != 3 {
				p.t.Errorf("asked for byte %d, want 3", le.Uint32(r.data))
			}
			p.send(f(zkproto.CmdPrepareData, 0, 13, u32(81, 65536)))
			p.send(f(zkproto.CmdData, 0, 13, body[3:50]))
			p.sendHex("5050827d0d000000f4017dfd800000000d00000001") // an event in between
			p.send(f(zkproto.CmdData, 1, 13, body[50:]))
			p.send(f(zkproto.AckOK, 1, 13, nil))
		}, ""},
		{"larger buffer than the set", func(p peer) {
			p.request()
			p.send(f(zkproto.CmdData, 0, 11, append(append(u32(80), make([]byte, 80)...), 1, 2, 3)))
		}, ""},
		{"direct command only", func(p peer) {
			p.request()
			p.send(f(zkproto.AckError, 0, 11, nil))
			if r := p.request(); r.code != zkproto.CmdAttLogRead || len(r.data) != 0 {
				p.t.Errorf("asked %+v", r)
			}
			p.send(f(zkproto.CmdPrepareData, 0, 12, u32(size)))
			p.send(f(zkproto.CmdData, 0, 12, body))
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, p := newPeer(t, 11, nil)
			var got []byte
			err := play(t, func() { tt.terminal(p) }, func() error { return s.collect(t.Context(), &got, 80) })
			if err == nil && tt.want != "" || err != nil && err.Error() != tt.want {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if strings.HasPrefix(tt.name, "access-control") && gatepost.ClassOf(err) != gatepost.Misconfigured {
				t.Errorf("class %v", gatepost.ClassOf(err))
			}
		})
	}
}

// TestGivenUpRequestDoesNotConfuse cancels a request and lets its answer come with the next one's.
func TestGivenUpRequestDoesNotConfuse(t *testing.T) {
	s, p := newPeer(t, 3, nil)
	ctx, cancel := context.WithCancel(t.Context())
	if err := play(t, func() { p.request(); cancel() }, func() error {
		_, err := s.Time(ctx)
		return err
	}); !errors.Is(err, context.Canceled) || err.Error() != "get the time: context canceled" {
		t.Errorf("error %v", err)
	}
	if err := play(t, func() {
		p.request()
		p.send(frame{zkproto.AckOK, 0xfb2f, 3, []byte{0, 0, 0, 0}}.append(nil))
		p.send(frame{zkproto.AckOK, 0xfb2f, 4, []byte{0x7e, 0xf4, 0x1c, 0x32}}.append(nil))
	}, func() error {
		w, err := s.Time(t.Context())
		return expect(err, string(w), "2026-02-28T23:59:58")
	}); err != nil {
		t.Error(err)
	}
}

// TestSlowButSteadyIsNotGivenUp lets a frame trickle in over several timeouts.
func TestSlowButSteadyIsNotGivenUp(t *testing.T) {
	s, p := newPeer(t, 3, nil)
	answer := frame{zkproto.AckOK, 0xfb2f, 3, []byte{0x7e, 0xf4, 0x1c, 0x32}}.append(nil)
	start := time.Now()
	err := play(t, func() {
		p.request()
		tick := time.NewTicker(40 * time.Millisecond)
		defer tick.Stop()
		for i := range answer {
			p.send(answer[i : i+1])
			<-tick.C
		}
	}, func() error {
		w, err := s.Time(t.Context())
		return expect(err, string(w), "2026-02-28T23:59:58")
	})
	if err != nil {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

// TestFloodWithoutAnswerEnds sends events for ever and no answer.
func TestFloodWithoutAnswerEnds(t *testing.T) {
	s, p := newPeer(t, 3, func(o *options) { o.Timeout = 100 * time.Millisecond })
	ended := make(chan struct{})
	event := unhex(t, "5050827d09000000f401a7fc0001000064")
	err := play(t, func() {
		p.request()
		for {
			select {
			case <-ended:
				return
			default:
				p.send(event)
			}
		}
	}, func() error {
		defer close(ended)
		_, err := s.Time(t.Context())
		return err
	})
	if want := "get the time: no answer in 100ms"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
	if len(s.l.events) > eventQueue {
		t.Errorf("%d events wait", len(s.l.events))
	}
}

func TestUrgentGoesFirst(t *testing.T) {
	var tn turn
	if err := tn.take(t.Context(), normal); err != nil {
		t.Fatal(err)
	}
	order := make(chan priority, 3)
	waiting := func() int {
		tn.mu.Lock()
		defer tn.mu.Unlock()
		return len(tn.waiting[normal]) + len(tn.waiting[urgent])
	}
	for i, p := range []priority{normal, normal, urgent} {
		go func() {
			if tn.take(t.Context(), p) == nil {
				order <- p
				tn.give()
			}
		}()
		waitFor(t, "queued", func() bool { return waiting() == i+1 })
	}
	ctx, cancel := context.WithCancel(t.Context())
	given := make(chan error)
	go func() { given <- tn.take(ctx, urgent) }()
	waitFor(t, "queued", func() bool { return waiting() == 4 })
	cancel()
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	tn.give()
	for _, want := range []priority{urgent, normal, normal} {
		if got := <-order; got != want {
			t.Errorf("turn for %v, want %v", got, want)
		}
	}
}

func TestChunksAdapt(t *testing.T) {
	for _, tt := range []struct {
		size int
		took time.Duration
		want int
	}{
		{4096, 40 * time.Millisecond, 8192},
		{4096, time.Millisecond, 16384},
		{4096, 0, 16384},
		{4096, -time.Millisecond, 16384},
		{65472, time.Millisecond, 65472},
		{8192, 160 * time.Millisecond, 4096},
		{2048, time.Minute, 1024},
	} {
		if got := adapt(tt.size, tt.took); got != tt.want {
			t.Errorf("after %d bytes in %v: %d, want %d", tt.size, tt.took, got, tt.want)
		}
	}
}

// TestSettings has one mistake each, with the words for the installer.
func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		edit func(*options)
		want string
	}{
		{func(o *options) { o.Address = "" }, "address: missing; it is under Menu > Comm. > Ethernet on the terminal"},
		{func(o *options) { o.Address = "a:b:c" }, `address: "a:b:c" is not HOST or HOST:PORT`},
		{func(o *options) { o.Address = "gate:0" }, `address: "0" is not a port; terminals use 4370`},
		{func(o *options) { o.Address = "gate:x" }, `address: "x" is not a port; terminals use 4370`},
		{func(o *options) { o.Password = gatepost.NewSecret("s3cret") }, "password: the comm key of a terminal is a number from 0 to 4294967295"},
		{func(o *options) { o.UnlockUnit = "minutes" }, `unlock_unit: "minutes" is neither "tenths" nor "seconds"`},
		{func(o *options) { o.Encoding = "gbk" }, `encoding: "gbk" is not known; utf-8 and latin1 are`},
		{func(o *options) { o.RecordSize = 8 }, "record_size: 8 is not possible; 16, 40 and 49 are, and 0 finds out"},
		{func(o *options) { o.UserSize = 73 }, "user_size: 73 is not possible; 28 and 72 are, and 0 finds out"},
		{func(o *options) { o.Doors = 0 }, "doors: 0 is not from 1 to 16"},
		{func(o *options) { o.Timeout = time.Nanosecond }, "timeout: 1ns is not from 100ms to 5m"},
	} {
		_, err := newDevice(func(into any) error {
			o := into.(*options)
			o.Address = "gate"
			tt.edit(o)
			return nil
		}, gatepost.Env{})
		if err == nil || err.Error() != tt.want || gatepost.ClassOf(err) != gatepost.Misconfigured {
			t.Errorf("error %v, want %v", err, tt.want)
		}
	}
	for address, want := range map[string]string{"gate": "gate:4370", "10.0.0.9": "10.0.0.9:4370", "[::1]": "[::1]:4370", "[::1]:5": "[::1]:5", "gate:5": "gate:5"} {
		if d := newTestDevice(t, address, nil); d.Address != want {
			t.Errorf("address %q became %q, want %q", address, d.Address, want)
		}
	}
}
