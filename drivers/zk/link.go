package zk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// link is one connection: framing, one request at a time, answers matched by reply number, events set aside.
//
// Several goroutines may ask; one request is outstanding at a time, because terminals are not built for more, and an
// urgent one goes before all that wait. A request that was given up leaves the link in order: its late answer carries an
// old reply number and is dropped.
type link struct {
	conn    net.Conn
	log     *slog.Logger
	lenient bool
	timeout time.Duration // without a byte from the terminal

	session uint16 // set by login, before anything else runs
	turn    turn
	events  chan frame    // from the reader to Listen; when full, events are dropped unconfirmed: the terminal's log has them
	done    chan struct{} // closed when the reader ended, after err was set
	err     error
	born    time.Time
	heard   atomic.Int64 // when the last byte came, nanoseconds after born: the board's wall clock may jump
	rtt     atomic.Int64 // the shortest round trip seen, nanoseconds; 0 before the first
	dropped atomic.Int64 // events dropped since the last one taken

	wmu sync.Mutex // guards writing to conn

	mu      sync.Mutex // guards the following
	reply   uint16     // the next request's number
	current *exchange  // the request under way
	cause   error      // why we closed the connection ourselves
}

const (
	eventQueue = 1024
	// stallFactor times the timeout is how long a terminal may send bytes that answer nothing.
	stallFactor = 6
)

var errClosed = errors.New("the session is closed")

// newLink starts the reader; fail or close ends it.
func newLink(conn net.Conn, log *slog.Logger, timeout time.Duration, lenient bool) *link {
	l := &link{
		conn: conn, log: log, timeout: timeout, lenient: lenient, born: time.Now(),
		events: make(chan frame, eventQueue), done: make(chan struct{}),
	}
	go l.read()
	return l
}

// Read lets the reader's bufio note each arrival.
func (l *link) Read(p []byte) (int, error) {
	n, err := l.conn.Read(p)
	if n > 0 {
		l.heard.Store(int64(time.Since(l.born)))
	}
	return n, err
}

// silent is how long nothing has come.
func (l *link) silent() time.Duration { return time.Since(l.born) - time.Duration(l.heard.Load()) }

// read hands each frame to whom it is for until the connection ends.
func (l *link) read() {
	r := bufio.NewReaderSize(l, 16<<10)
	for {
		f, err := readFrame(r)
		if c, ok := errors.AsType[*checksumError](err); ok {
			if l.lenient {
				l.log.Debug("frame with a wrong checksum used all the same", "err", c)
				err = nil
			} else {
				err = &gatepost.Fault{Err: c, Hint: "if every frame of this terminal is like that, set \"lenient: true\" for it"}
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = gatepost.ErrHungUp
			}
			l.mu.Lock()
			if l.cause != nil {
				err = l.cause
			}
			l.mu.Unlock()
			l.err = err
			l.conn.Close()
			close(l.done)
			return
		}
		if f.code == zkproto.CmdRegEvent {
			select {
			case l.events <- f:
			default:
				l.dropped.Add(1)
			}
			continue
		}
		l.mu.Lock()
		x := l.current
		l.mu.Unlock()
		if x == nil || f.reply != x.reply {
			if x != nil {
				x.strays.Add(1)
			}
			l.log.Debug("answer to an older request dropped", "seq", f.reply)
			continue
		}
		select {
		case x.frames <- f:
		case <-x.ended:
		}
	}
}

// fail ends the link for a reason of ours. Bytes that have not left yet are discarded, so that nothing is carried out
// late: the connection is reset, not closed in order.
func (l *link) fail(err error) {
	l.mu.Lock()
	if l.cause == nil {
		l.cause = err
	}
	l.mu.Unlock()
	if c, ok := l.conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	l.conn.Close()
}

// close ends the link in order and waits for the reader.
func (l *link) close() {
	l.mu.Lock()
	if l.cause == nil {
		l.cause = errClosed
	}
	l.mu.Unlock()
	l.conn.Close()
	<-l.done
}

// write sends one frame. sent says whether a byte of it may have left; a frame that left in part ends the link.
func (l *link) write(ctx context.Context, f frame) (sent bool, err error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	l.conn.SetWriteDeadline(time.Now().Add(l.timeout))
	ran := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.conn.SetWriteDeadline(time.Unix(1, 0))
		close(ran)
	})
	n, err := l.conn.Write(f.append(nil))
	if !stop() {
		<-ran
	}
	if err == nil {
		return true, nil
	}
	if n > 0 {
		l.fail(fmt.Errorf("a frame left in part: %w", err))
	}
	select {
	case <-l.done:
		err = l.err
	default:
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	return n > 0, err
}

// exchange is one request and its answer of one or more frames. It holds the link's turn until end.
type exchange struct {
	l      *link
	what   string
	reply  uint16
	start  time.Time
	frames chan frame
	ended  chan struct{}
	strays atomic.Int32 // answers to older requests that came meanwhile
}

// ask waits for its turn and sends a request; what names it in errors. The exchange must be ended.
func (l *link) ask(ctx context.Context, p priority, what string, code uint16, data []byte) (*exchange, error) {
	if err := l.turn.take(ctx, p); err != nil {
		return nil, &askError{err: fmt.Errorf("%s: waiting for the terminal: %w", what, err)}
	}
	x := &exchange{l: l, what: what, start: time.Now(), frames: make(chan frame, 8), ended: make(chan struct{})}
	l.mu.Lock()
	x.reply = l.reply
	l.reply = nextReply(l.reply)
	l.current = x
	l.mu.Unlock()
	sent, err := l.write(ctx, frame{code: code, session: l.session, reply: x.reply, data: data})
	if err != nil {
		x.end()
		return nil, &askError{sent: sent, err: fmt.Errorf("%s: %w", what, err)}
	}
	return x, nil
}

// askError is a request that did not leave, at least not whole.
type askError struct {
	sent bool // a byte of it may have left
	err  error
}

func (e *askError) Error() string { return e.err.Error() }
func (e *askError) Unwrap() error { return e.err }

// nextReply counts 0 to 65534; 65535 is never used.
func nextReply(n uint16) uint16 {
	if n >= zkproto.MaxReply {
		return 0
	}
	return n + 1
}

// next is the answer's next frame.
func (x *exchange) next(ctx context.Context) (frame, error) {
	l := x.l
	began := time.Now()
	timer := time.NewTimer(l.timeout)
	defer timer.Stop()
	for {
		select {
		case f := <-x.frames:
			return f, nil
		case <-l.done:
			select {
			case f := <-x.frames: // it came before the end
				return f, nil
			default:
			}
			return frame{}, fmt.Errorf("%s: %w", x.what, l.err)
		case <-ctx.Done():
			return frame{}, fmt.Errorf("%s: %w", x.what, context.Cause(ctx))
		case <-timer.C:
			silent := min(time.Since(began), l.silent())
			if rest := l.timeout - silent; rest > 0 && time.Since(began) < stallFactor*l.timeout {
				timer.Reset(rest)
				continue
			}
			err := fmt.Errorf("%s: no answer in %v", x.what, l.timeout)
			if n := x.strays.Load(); n > 0 {
				err = fmt.Errorf("%w, only %d to older requests", err, n)
			}
			return frame{}, err
		}
	}
}

// end gives the turn back. What still comes for x is dropped.
func (x *exchange) end() {
	x.l.mu.Lock()
	if x.l.current == x {
		x.l.current = nil
	}
	x.l.mu.Unlock()
	close(x.ended)
	x.l.turn.give()
}

// call is a request with an answer of one frame.
func (l *link) call(ctx context.Context, p priority, what string, code uint16, data []byte) (frame, error) {
	x, err := l.ask(ctx, p, what, code, data)
	if err != nil {
		return frame{}, err
	}
	defer x.end()
	f, err := x.next(ctx)
	if err != nil {
		return f, err
	}
	took := int64(time.Since(x.start))
	if best := l.rtt.Load(); best == 0 || took < best {
		l.rtt.Store(took)
	}
	return f, nil
}

// do is a call whose answer must be an OK.
func (l *link) do(ctx context.Context, p priority, what string, code uint16, data []byte) ([]byte, error) {
	f, err := l.call(ctx, p, what, code, data)
	if err != nil {
		return nil, err
	}
	if f.code != zkproto.AckOK && f.code != zkproto.AckData {
		return nil, fmt.Errorf("%s: %w", what, replyError(f.code))
	}
	return f.data, nil
}

// post sends a request and does not wait; its answer will be dropped. For goodbyes.
func (l *link) post(ctx context.Context, code uint16, data []byte) error {
	l.mu.Lock()
	n := l.reply
	l.reply = nextReply(l.reply)
	l.mu.Unlock()
	_, err := l.write(ctx, frame{code: code, session: l.session, reply: n, data: data})
	return err
}

// ack confirms an event.
func (l *link) ack(ctx context.Context) error {
	_, err := l.write(ctx, frame{code: zkproto.AckOK, session: l.session})
	return err
}

// login connects and, where the terminal asks for it, authenticates. It is the first thing on a link.
func (l *link) login(ctx context.Context, key uint32) error {
	f, err := l.call(ctx, normal, "connect", zkproto.CmdConnect, nil)
	if err != nil {
		return &gatepost.Fault{Err: err, Hint: "does another program hold the terminal's only connection? Most terminals serve one at a time"}
	}
	l.session = f.session
	switch f.code {
	case zkproto.AckOK:
		return nil
	case zkproto.AckUnauth:
	default:
		return fmt.Errorf("connect: %w", replyError(f.code))
	}
	sum := commKey(key, l.session, 50)
	f, err = l.call(ctx, normal, "authenticate", zkproto.CmdAuth, sum[:])
	switch {
	case err != nil:
		return err
	case f.code == zkproto.AckOK:
		return nil
	case f.code != zkproto.AckUnauth:
		return fmt.Errorf("authenticate: %w", replyError(f.code))
	case key == 0:
		err = errors.New("the terminal wants a comm key and none is set")
	default:
		err = errors.New("wrong comm key")
	}
	return &gatepost.Fault{
		Class: gatepost.Misconfigured,
		Err:   err,
		Hint:  `the comm key is under Menu > Comm. > PC Connection > Comm Key on the terminal; set "password" to the same number (0: none)`,
	}
}

// replyError is an answer other than OK, by its code.
type replyError uint16

func (e replyError) Error() string {
	word, ok := map[replyError]string{
		zkproto.AckError:     "error",
		zkproto.AckRetry:     "retry",
		zkproto.AckRepeat:    "repeat",
		zkproto.AckUnauth:    "not logged in",
		zkproto.AckMode:      "not in this device mode",
		zkproto.AckErrorData: "bad data",
		zkproto.AckErrorInit: "not initialised",
		zkproto.AckErrorCmd:  "bad command",
		zkproto.AckUnknown:   "unknown command",
	}[e]
	if !ok {
		return fmt.Sprintf("the terminal answered with the unexpected code %d", uint16(e))
	}
	return fmt.Sprintf("the terminal answered %d (%s)", uint16(e), word)
}

// Is makes every answer that is a "no" a refusal, and an unknown command something this terminal cannot do.
func (e replyError) Is(target error) bool {
	if e == zkproto.AckUnknown || e == zkproto.AckErrorCmd {
		return target == errors.ErrUnsupported
	}
	return target == gatepost.ErrRefused
}

// priority is a place in the queue for the link.
type priority int

const (
	normal priority = iota
	urgent          // goes before all that wait
)

// turn is a mutex with two queues and a context. The zero value is free.
type turn struct {
	mu      sync.Mutex // guards the following
	held    bool
	waiting [urgent + 1][]chan struct{}
}

func (t *turn) take(ctx context.Context, p priority) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t.mu.Lock()
	if !t.held {
		t.held = true
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	t.waiting[p] = append(t.waiting[p], mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	for i, c := range t.waiting[p] {
		if c == mine {
			t.waiting[p] = append(t.waiting[p][:i], t.waiting[p][i+1:]...)
			t.mu.Unlock()
			return context.Cause(ctx)
		}
	}
	t.mu.Unlock()
	t.give() // it became ours at the same moment
	return context.Cause(ctx)
}

func (t *turn) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := urgent; p >= normal; p-- {
		if q := t.waiting[p]; len(q) > 0 {
			close(q[0])
			t.waiting[p] = q[1:]
			return
		}
	}
	t.held = false
}

// exit says goodbye and waits a moment for the answer. It does not wait for its turn: whoever has it is being cut off.
func (l *link) exit(wait time.Duration) {
	x := &exchange{l: l, frames: make(chan frame, 8), ended: make(chan struct{})}
	defer close(x.ended)
	l.mu.Lock()
	x.reply = l.reply
	l.current = x
	l.mu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(wait)) // also for a writer that is stuck
	l.wmu.Lock()
	l.conn.SetWriteDeadline(time.Now().Add(wait))
	_, err := l.conn.Write(frame{code: zkproto.CmdExit, session: l.session, reply: x.reply}.append(nil))
	l.wmu.Unlock()
	if err != nil {
		return
	}
	select {
	case <-x.frames:
	case <-l.done:
	case <-time.After(wait):
	}
}
