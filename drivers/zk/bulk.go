package zk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// A data set is what one bulk read gives: a u32 that counts the bytes after it, then records. It comes in one of these
// ways, by firmware and size; read hides which:
//
//	inline    one DATA or ACK_DATA frame with all of it
//	buffered  ACK_OK with u8 0, u32 size, u32 size, u32 ?: it waits in the terminal, fetched in chunks with ReadBuffer;
//	          only here can a reader start anywhere, and let others in between chunks
//	stream    PREPARE_DATA with u32 size and perhaps u32 largest frame, then DATA frames until size is reached
//
// A chunk of a buffered set is answered like a small stream, or by one DATA frame alone.
type dataset struct {
	l      *link
	what   string
	size   int       // bytes, the leading u32 included
	inline []byte    // all of it, where it came at once
	stream *exchange // it is coming already
}

// subject is what can be read in bulk.
type subject struct {
	what   string
	sub    uint16 // in PrepareBuffer, and the old direct command
	fct    uint32
	direct []byte // data of the direct command
}

var (
	attLog = subject{"read the log", zkproto.CmdAttLogRead, 0, nil}
	users  = subject{"read the users", zkproto.CmdUserTempRead, zkproto.FctUser, []byte{zkproto.FctUser}}
)

// maxSet bounds what a terminal may announce: a hundred times the largest log known.
const maxSet = 1 << 28

// Chunks adapt to the link: an unlock waits for one chunk at most, so a chunk should pass in chunkTime.
const (
	chunkTime  = 80 * time.Millisecond
	firstChunk = 4 << 10
	minChunk   = 1 << 10
)

// prepare asks for a data set. The caller closes it.
func (l *link) prepare(ctx context.Context, s subject) (*dataset, error) {
	req := []byte{1}
	req = le.AppendUint16(req, s.sub)
	req = le.AppendUint32(req, s.fct)
	req = le.AppendUint32(req, 0)
	d, err := l.open(ctx, s.what, zkproto.CmdPrepareBuffer, req)
	no, refused := errors.AsType[replyError](err)
	if !refused {
		return d, err
	}
	// Old firmware knows only the direct command.
	d, err = l.open(ctx, s.what, s.sub, s.direct)
	if _, again := errors.AsType[replyError](err); again {
		err = fmt.Errorf("%s: %w", s.what, no)
		if no == zkproto.AckMode {
			err = &gatepost.Fault{
				Class: gatepost.Misconfigured,
				Err:   err,
				Hint:  "set the terminal's device type to time attendance (T&A), or let it push its records to us",
			}
		}
	}
	return d, err
}

// open sends one of the two requests and sorts the answer.
func (l *link) open(ctx context.Context, what string, code uint16, data []byte) (*dataset, error) {
	x, err := l.ask(ctx, normal, what, code, data)
	if err != nil {
		return nil, err
	}
	f, err := x.next(ctx)
	if err != nil {
		x.end()
		return nil, err
	}
	d := &dataset{l: l, what: what}
	switch {
	case f.code == zkproto.CmdPrepareData:
		if d.size, err = announced(what, f.data, 0); err != nil {
			x.end()
			return nil, err
		}
		d.stream = x
		return d, nil
	case f.code == zkproto.CmdData, f.code == zkproto.AckData:
		d.inline, d.size = f.data, len(f.data)
	case f.code != zkproto.AckOK:
		err = fmt.Errorf("%s: %w", what, replyError(f.code))
	case len(f.data) >= 5:
		d.size, err = announced(what, f.data, 1)
	}
	x.end()
	return d, err
}

// announced reads a size at off.
func announced(what string, b []byte, off int) (int, error) {
	if len(b) < off+4 {
		return 0, fmt.Errorf("%s: the terminal announces data without a size: %x", what, b)
	}
	n := le.Uint32(b[off:])
	if n > maxSet {
		return 0, fmt.Errorf("%s: the terminal announces %d bytes, over the limit of %d", what, n, maxSet)
	}
	return int(n), nil
}

// dataError is an answer that contradicts itself or the question.
type dataError struct{ err error }

func (e *dataError) Error() string { return e.err.Error() }

func (d *dataset) bad(format string, args ...any) error {
	return &dataError{fmt.Errorf("%s: "+format, append([]any{d.what}, args...)...)}
}

// body is how many bytes follow the leading u32.
func (d *dataset) body() int { return max(0, d.size-4) }

// read gives the body from byte from on, piece by piece and in order, to sink, which must not keep the pieces. Between
// chunks of a buffered set the link is free for others, and while sink runs too.
func (d *dataset) read(ctx context.Context, from int, sink func(p []byte) error) error {
	left := d.body() - from // of the body, as far as is known
	skip := 4 + from        // of the set
	pass := func(p []byte) error {
		if skip >= len(p) {
			skip -= len(p)
			return nil
		}
		p = p[skip:]
		skip = 0
		p = p[:min(len(p), left)]
		left -= len(p)
		if len(p) == 0 {
			return nil
		}
		return sink(p)
	}
	var lead []byte
	check := func(p []byte) error {
		if len(lead) < 4 {
			n := min(4-len(lead), len(p))
			lead = append(lead, p[:n]...)
			if len(lead) == 4 {
				said := le.Uint32(lead)
				if uint64(said) > uint64(d.body()) {
					return d.bad("the data set counts %d bytes, the terminal announced %d", said, d.body())
				}
				left = max(0, left-(d.body()-int(said)))
				d.size = 4 + int(said) // a larger buffer is cut
			}
		}
		return pass(p)
	}
	switch {
	case d.size < 4:
		return nil
	case d.inline != nil:
		return check(d.inline)
	case d.stream != nil:
		return d.frames(ctx, d.stream, d.size, check)
	}
	if from == 0 {
		return d.chunks(ctx, 0, check)
	}
	at := skip
	skip = 0
	return d.chunks(ctx, at, pass)
}

// chunks fetches a buffered set from byte at on.
func (d *dataset) chunks(ctx context.Context, at int, sink func([]byte) error) error {
	var buf []byte
	size := firstChunk
	for at < d.size {
		want := min(size, d.size-at)
		buf = buf[:0]
		took, err := d.chunk(ctx, at, want, func(p []byte) error {
			buf = append(buf, p...)
			return nil
		})
		if err != nil {
			return err
		}
		if len(buf) == 0 {
			return d.bad("the terminal stopped at byte %d of %d", at, d.size)
		}
		if err := sink(buf); err != nil {
			return err
		}
		at += len(buf)
		if len(buf) == size {
			size = adapt(size, took-time.Duration(d.l.rtt.Load()))
		}
	}
	return nil
}

// adapt is the next chunk's size after one of size bytes took so long, the way there and back not counted.
func adapt(size int, took time.Duration) int {
	next := 4 * size
	if took > 0 {
		next = min(next, int(float64(size)*float64(chunkTime)/float64(took)))
	}
	return max(minChunk, min(next, zkproto.MaxChunk))
}

// chunk asks for one piece and says how long it took.
func (d *dataset) chunk(ctx context.Context, at, want int, sink func([]byte) error) (time.Duration, error) {
	req := le.AppendUint32(nil, uint32(at))
	req = le.AppendUint32(req, uint32(want))
	x, err := d.l.ask(ctx, normal, d.what, zkproto.CmdReadBuffer, req)
	if err != nil {
		return 0, err
	}
	defer x.end()
	f, err := x.next(ctx)
	if err != nil {
		return 0, err
	}
	switch f.code {
	case zkproto.CmdPrepareData:
		n, err := announced(d.what, f.data, 0)
		if err != nil {
			return 0, err
		}
		if n > want {
			return 0, d.bad("the terminal announces %d bytes where %d were asked for", n, want)
		}
		err = d.frames(ctx, x, n, sink)
		return time.Since(x.start), err
	case zkproto.CmdData, zkproto.AckData:
		if len(f.data) > want {
			return 0, d.bad("the terminal sent %d bytes where %d were asked for", len(f.data), want)
		}
		return time.Since(x.start), sink(f.data)
	}
	return 0, fmt.Errorf("%s: byte %d: %w", d.what, at, replyError(f.code))
}

// frames takes the DATA frames after a PREPARE_DATA of size bytes. The ACK_OK after them is not waited for: it says
// nothing new, and not every firmware sends it.
func (d *dataset) frames(ctx context.Context, x *exchange, size int, sink func([]byte) error) error {
	for got := 0; got < size; {
		f, err := x.next(ctx)
		if err != nil {
			return err
		}
		switch {
		case f.code == zkproto.AckOK:
			return d.bad("the terminal sent %d bytes of the %d it announced", got, size)
		case f.code != zkproto.CmdData:
			return fmt.Errorf("%s: after %d of %d bytes: %w", d.what, got, size, replyError(f.code))
		}
		if got += len(f.data); got > size {
			return d.bad("the terminal sent %d bytes where it announced %d", got, size)
		}
		if err := sink(f.data); err != nil {
			return err
		}
	}
	return nil
}

// close lets the terminal free its buffer, also after an error and after ctx ended. A stream given up in the middle would
// go on for as long as the terminal likes, so the link is ended with it.
func (d *dataset) close(ctx context.Context, complete bool) {
	if d.stream != nil {
		d.stream.end()
		if !complete {
			d.l.fail(fmt.Errorf("%s: given up in the middle of a stream", d.what))
			return
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := d.l.post(ctx, zkproto.CmdFreeData, nil); err != nil {
		d.l.log.Debug("the terminal's buffer was not freed", "err", err)
	}
}
