package zk

import (
	"bytes"
	"encoding/hex"
	"unicode/utf8"
)

// encoding is how a terminal spells names and ids.
type encoding string

const (
	encodingUTF8   encoding = "utf-8"
	encodingLatin1 encoding = "latin1"
)

// field is the bytes of b up to a NUL; what follows is left over from older contents.
func field(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// append appends b, spelled in UTF-8. Bytes that the encoding does not know come as \xHH, and a backslash before an x as
// \x5c, so that different bytes never read alike. odd says that b could not be taken as it is.
func (e encoding) append(dst, b []byte) (text []byte, odd bool) {
	plain := true
	for _, c := range b {
		if c >= utf8.RuneSelf || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		return append(dst, b...), false
	}
	for i := 0; i < len(b); {
		c := b[i]
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case c == '\\' && i+1 < len(b) && b[i+1] == 'x':
			dst = append(dst, `\x5c`...)
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		case e == encodingLatin1:
			dst = utf8.AppendRune(dst, rune(c))
			n = 1
		case r == utf8.RuneError && n == 1:
			dst = append(dst, `\x`...)
			dst = hex.AppendEncode(dst, b[i:i+1])
			odd = true
		default:
			dst = append(dst, b[i:i+n]...)
		}
		i += n
	}
	return dst, odd
}

func (e encoding) text(b []byte) (s string, odd bool) {
	t, odd := e.append(make([]byte, 0, 32), b)
	return string(t), odd
}
