package zk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"gatepost/drivers/zk/zkproto"
)

// A frame on TCP; all integers little-endian. The length counts from the code on.
//
//	 0         4         8      10         12        14             16
//	+---------+---------+------+----------+---------+--------------+------
//	| magic   | length  | code | checksum | session | reply number | data
//	+---------+---------+------+----------+---------+--------------+------
//
// session is not always a session id: an event carries its bit there, bulk data a sequence number. Answers are therefore
// matched by reply number alone.
type frame struct {
	code    uint16
	session uint16
	reply   uint16
	data    []byte
}

var le = binary.LittleEndian

// checksum is the ones-complement sum over a payload whose checksum field counts as zero; an odd last byte is padded.
func checksum(payload []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(payload); i += 2 {
		if i != 2 {
			sum += uint32(payload[i]) | uint32(payload[i+1])<<8
		}
		if sum >= 1<<31 { // only after 32 K words: fold early
			sum = sum&0xffff + sum>>16
		}
	}
	if len(payload)%2 == 1 {
		sum += uint32(payload[len(payload)-1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// append appends f as it goes on the wire.
func (f frame) append(b []byte) []byte {
	start := len(b) + zkproto.PrefixLen
	b = le.AppendUint32(b, zkproto.Magic)
	b = le.AppendUint32(b, uint32(zkproto.HeaderLen+len(f.data)))
	b = le.AppendUint16(b, f.code)
	b = append(b, 0, 0)
	b = le.AppendUint16(b, f.session)
	b = le.AppendUint16(b, f.reply)
	b = append(b, f.data...)
	le.PutUint16(b[start+2:], checksum(b[start:]))
	return b
}

// errCut is an end in the middle of a frame.
var errCut = errors.New("the terminal closed the connection in mid-frame")

// checksumError comes with the frame it is about; a lenient reader may use it all the same.
type checksumError struct{ got, want uint16 }

func (e *checksumError) Error() string {
	return fmt.Sprintf("frame with checksum %04x, want %04x", e.got, e.want)
}

// readFrame reads one frame. After an error other than a [checksumError] the stream has no known frame borders any more.
// At the end of the stream it returns [io.EOF] between frames and errCut within one.
func readFrame(r io.Reader) (frame, error) {
	var prefix [zkproto.PrefixLen]byte
	if n, err := io.ReadFull(r, prefix[:]); err != nil {
		if n > 0 && errors.Is(err, io.ErrUnexpectedEOF) {
			err = errCut
		}
		return frame{}, err
	}
	if le.Uint32(prefix[:]) != zkproto.Magic {
		return frame{}, fmt.Errorf("not a frame: it starts with %x", prefix[:4])
	}
	n := le.Uint32(prefix[4:])
	if n < zkproto.HeaderLen || n > zkproto.MaxPayload {
		return frame{}, fmt.Errorf("a frame of %d bytes is announced; %d to %d are possible", n, zkproto.HeaderLen, zkproto.MaxPayload)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errCut
		}
		return frame{}, err
	}
	f := frame{
		code:    le.Uint16(p),
		session: le.Uint16(p[4:]),
		reply:   le.Uint16(p[6:]),
		data:    p[zkproto.HeaderLen:],
	}
	if got, want := le.Uint16(p[2:]), checksum(p); got != want {
		return f, &checksumError{got: got, want: want}
	}
	return f, nil
}

// commKey is the answer to an ACK_UNAUTH: the comm key scrambled with the session id. ticks is any byte; it travels along.
// The third byte of the scrambled key is replaced by it.
func commKey(key uint32, session uint16, ticks byte) [4]byte {
	k := bits.Reverse32(key) + uint32(session)
	return [4]byte{
		byte(k>>16) ^ 'S' ^ ticks,
		byte(k>>24) ^ 'O' ^ ticks,
		ticks,
		byte(k>>8) ^ 'K' ^ ticks,
	}
}
