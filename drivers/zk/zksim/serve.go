package zksim

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"gatepost/drivers/zk/zkproto"
)

// session is one client's conversation. What its reading goroutine alone uses is not guarded.
type session struct {
	*link
	id      uint16 // 0: not connected yet
	welcome bool   // the comm key was right, or none is asked
	set     dataset
	wake    chan struct{} // events to send, or confirmed
	left    chan struct{} // closed when another client may come

	// Guarded by Terminal.mu:
	mask      uint32 // events asked for
	verifying bool
	queue     []event
	flying    int       // so many from the front were sent
	tries     int       // how often the oldest was
	sent      time.Time // and when
}

// Serve is the terminal on l until ctx ends; then it hangs up, waits for its goroutines and returns nil. l is closed in
// any case.
func (t *Terminal) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer func() { _ = l.Close() }()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				reset(conn)
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // the client was gone again, or too many files: the next may do better
			t.o.Log.Warn("accept", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		case t.refuses():
			reset(conn)
		default:
			wg.Go(func() { t.serve(ctx, conn) })
		}
	}
}

// refuses says whether a new connection is turned away.
func (t *Terminal) refuses() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.fault("refuse"); f != nil && f.Code == 0 {
		t.spend(f)
		return true
	}
	return t.off || time.Now().Before(t.back)
}

func (t *Terminal) serve(ctx context.Context, conn net.Conn) {
	s := &session{link: &link{t: t, conn: conn, done: make(chan struct{})}, wake: make(chan struct{}, 1), left: make(chan struct{})}
	defer s.kill()
	defer context.AfterFunc(ctx, s.kill)()
	addr := conn.RemoteAddr().String()
	if !t.admit(s) {
		t.o.Log.Info("second client refused", "addr", addr)
		return
	}
	defer t.leave(s)
	var wg sync.WaitGroup
	wg.Go(s.sendEvents)
	err := s.read(conn)
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, errGoodbye) {
		t.o.Log.Info("client lost", "addr", addr, "err", err)
	}
	_ = conn.Close() // in order, so that the last answer arrives
	s.kill()
	wg.Wait()
}

// leaving is how long a second client waits for the first to be gone before it is refused: one that closes and connects
// again must not meet itself.
const leaving = 200 * time.Millisecond

// admit waits until s may be served; false: never.
func (t *Terminal) admit(s *session) bool {
	patience := time.NewTimer(leaving)
	defer patience.Stop()
	for {
		t.mu.Lock()
		first := t.holder
		if first == nil || t.o.OneClient == "off" {
			if t.o.OneClient != "off" {
				t.holder = s
			}
			t.sessions[s] = struct{}{}
			t.mu.Unlock()
			return true
		}
		t.mu.Unlock()
		var out <-chan time.Time
		switch t.o.OneClient {
		case "kick":
			first.kill()
		case "refuse":
			out = patience.C
		}
		select {
		case <-first.left:
		case <-out:
			return false
		case <-s.done:
			return false
		}
	}
}

// leave makes room for the next client.
func (t *Terminal) leave(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sessions, s)
	if t.holder == s {
		t.holder = nil
	}
	close(s.left)
}

var errGoodbye = errors.New("said goodbye")

// read answers requests until the connection ends.
func (s *session) read(conn net.Conn) error {
	r := bufio.NewReader(conn)
	buf := make([]byte, maxRequest)
	for {
		payload, err := readPayload(r, buf)
		if err != nil {
			return err
		}
		req, err := parseRequest(payload)
		if errors.Is(err, errChecksum) && s.t.o.AnyChecksum {
			err = nil
		}
		if err != nil {
			s.t.o.Log.Warn("request ignored", "err", err, "verb", req.code)
			continue
		}
		if req.code == zkproto.AckOK { // confirms an event; has no answer
			if req.session == s.id && req.reply == 0 {
				s.confirmed()
			}
			continue
		}
		s.t.mu.Lock()
		s.t.requests++
		s.t.mu.Unlock()
		if _, ok := s.t.strike("silent"); ok {
			continue
		}
		a, ok := s.refused(req)
		if !ok {
			a = s.handle(req)
		}
		if err := s.answer(req, a); err != nil {
			return err
		}
		if a.then != nil {
			a.then()
		}
		if a.bye {
			return errGoodbye
		}
	}
}

// refused is the answer that a fault wants for req.
func (s *session) refused(req request) (answer, bool) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	f := s.t.fault("refuse")
	if f == nil || f.Code == 0 || f.Command != 0 && f.Command != int(req.code) {
		return answer{}, false
	}
	code := uint16(f.Code)
	s.t.spend(f)
	return answer{code: code}, true
}
