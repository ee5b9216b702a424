package zksim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"gatepost/drivers/zk/zkproto"
)

var le = binary.LittleEndian

// A payload, and the prefix that TCP puts in front of it:
//
//	  0        4        8    10    12     14     16
//	+--------+--------+----+-----+------+------+------
//	| magic  | length |code| sum |field | reply| data
//	+--------+--------+----+-----+------+------+------
//	|<-- TCP only --->|<------- length bytes -------->
//
// field is the session id, but for events, the answer to CmdState and bulk data.

// request is what a client sent.
type request struct {
	code, session, reply uint16
	data                 []byte
}

var (
	errShort    = errors.New("payload shorter than its header")
	errChecksum = errors.New("wrong checksum")
)

// parseRequest reads a payload. With errChecksum the request is filled in all the same. Its data is a part of b.
func parseRequest(b []byte) (request, error) {
	if len(b) < zkproto.HeaderLen {
		return request{}, errShort
	}
	r := request{le.Uint16(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[zkproto.HeaderLen:]}
	if onesSum(b) != 0xffff {
		return r, errChecksum
	}
	return r, nil
}

// maxRequest bounds what a client may send at once: the largest real one is an upload of 1024 bytes.
const maxRequest = 64 << 10

// readPayload reads one TCP frame into buf, which must hold maxRequest bytes, and returns its payload.
func readPayload(r io.Reader, buf []byte) ([]byte, error) {
	prefix := buf[:zkproto.PrefixLen]
	if _, err := io.ReadFull(r, prefix); err != nil {
		return nil, err
	}
	if magic := le.Uint32(prefix); magic != zkproto.Magic {
		return nil, fmt.Errorf("frame starts with %x", prefix[:4])
	}
	n := le.Uint32(prefix[4:])
	if n < zkproto.HeaderLen || n > maxRequest {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	_, err := io.ReadFull(r, buf[:n])
	return buf[:n], err
}

// appendFrame appends a TCP frame; data fills in what follows the header.
func appendFrame(b []byte, code, field, reply uint16, data func([]byte) []byte) []byte {
	start := len(b)
	b = le.AppendUint32(b, zkproto.Magic)
	b = le.AppendUint32(b, 0) // length, below
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, 0) // checksum, below
	b = le.AppendUint16(b, field)
	b = le.AppendUint16(b, reply)
	if data != nil {
		b = data(b)
	}
	payload := b[start+zkproto.PrefixLen:]
	le.PutUint32(b[start+4:], uint32(len(payload)))
	le.PutUint16(payload[2:], ^onesSum(payload))
	return b
}

// onesSum is the ones-complement sum of b's little-endian words, an odd last byte standing for a word of its own. It is
// 0xffff over a payload whose checksum is right. Adding eight bytes at a time with the carry brought round gives the same
// sum, as 2^16-1 divides 2^64-1.
func onesSum(b []byte) uint16 {
	var sum, carry uint64
	for ; len(b) >= 8; b = b[8:] {
		sum, carry = bits.Add64(sum, le.Uint64(b), carry)
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		sum, carry = bits.Add64(sum, le.Uint64(last[:]), carry)
	}
	sum, carry = bits.Add64(sum, 0, carry)
	sum += carry
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// civil is a terminal's wall clock: no zone, and days that no calendar has, as every month counts 31 of them.
type civil struct{ year, month, day, hour, minute, second int }

// pack is the u32 of records and clock: seconds since 2000 in years of 12 months of 31 days.
func (c civil) pack() uint32 {
	days := (c.year%100*12+c.month-1)*31 + c.day - 1
	return uint32(((days*24+c.hour)*60+c.minute)*60 + c.second)
}

// unpack is the reverse of pack. Values beyond 2099 give years beyond it.
func unpack(u uint32) civil {
	n := int(u)
	digit := func(base int) int { d := n % base; n /= base; return d }
	var c civil
	c.second, c.minute, c.hour = digit(60), digit(60), digit(24)
	c.day, c.month = digit(31)+1, digit(12)+1
	c.year = 2000 + n
	return c
}

// appendSix appends the binary form of events: year since 2000, month, day, hour, minute, second.
func (c civil) appendSix(b []byte) []byte {
	return append(b, byte(c.year-2000), byte(c.month), byte(c.day), byte(c.hour), byte(c.minute), byte(c.second))
}

// appendText appends s cut or padded with zeros to width bytes.
func appendText(b []byte, s string, width int) []byte {
	s = s[:min(len(s), width)]
	b = append(b, s...)
	return append(b, make([]byte, width-len(s))...)
}

// proof is what a client that knows key must send in CmdAuth. It chose ticks, the third byte, itself.
func proof(key uint32, session uint16, ticks byte) [4]byte {
	k := le.AppendUint32(nil, bits.Reverse32(key)+uint32(session))
	for i, c := range []byte("ZKSO") {
		k[i] ^= c
	}
	return [4]byte{k[2] ^ ticks, k[3] ^ ticks, ticks, k[1] ^ ticks}
}
