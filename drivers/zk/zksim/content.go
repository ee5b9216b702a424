package zksim

import (
	"fmt"
	"strconv"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// user is a row of the terminal's user table.
type user struct {
	uid      uint16 // the terminal's own number
	priv     byte
	password string
	name     string
	card     uint32
	group    byte
	id       string // what people type
}

// User is a user as [Terminal.Users] tells it, for comparing with what a client read.
type User struct {
	UID       int    `json:"uid"`
	User      string `json:"user"`
	Name      string `json:"name"`
	Privilege int    `json:"privilege"`
	Password  string `json:"password"`
	Card      uint32 `json:"card"`
	Group     int    `json:"group"`
}

// Entry is a record of the log as [Terminal.Log] tells it.
type Entry struct {
	UID    int           `json:"uid"` // 0 where the layout has none
	User   string        `json:"user"`
	Time   gatepost.Wall `json:"time"`
	Verify int           `json:"verify"`
	State  int           `json:"state"`
}

var names = [...]string{"Ana", "Budi", "Chloé", "Dewi", "Emil", "Farid", "Gül", "Hana", "Ivan", "Jörg", "Kofi"}

// makeUser is the i-th user from 0, the same each time.
func makeUser(i int, odd bool) user {
	u := user{uid: uint16(i + 1), group: 1, id: strconv.Itoa(i + 1), name: names[i%len(names)] + " " + strconv.Itoa(i+1)}
	if i == 0 {
		u.priv = zkproto.PrivSuperAdmin
	}
	if i%3 == 1 {
		u.card = uint32(1_000_000 + 7919*i)
	}
	if i%4 == 2 {
		u.password = strconv.Itoa(1000 + i%9000)
	}
	if i%17 == 16 {
		u.name = ""
	}
	if odd && i%10 == 4 {
		u.id = "00" + u.id
	}
	if odd && i%10 == 7 {
		u.id += "lp"
	}
	return u
}

// append encodes u in 28 bytes (black-and-white firmware) or 72 (colour screens).
func (u *user) append(b []byte, size int) []byte {
	b = le.AppendUint16(b, u.uid)
	b = append(b, u.priv)
	if size == 28 {
		b = appendText(b, u.password, 5)
		b = appendText(b, clip(u.name, 8), 8)
		b = le.AppendUint32(b, u.card)
		b = append(b, 0, u.group)
		b = le.AppendUint16(b, 0) // time zones
		id, _ := strconv.ParseUint(u.id, 10, 32)
		return le.AppendUint32(b, uint32(id))
	}
	at := len(b)
	b = appendText(b, u.password, 8)
	if u.password != "" {
		copy(b[at+len(u.password)+1:at+8], "\xc6\x9a\x80\x7c") // what real ones leave behind the NUL
	}
	b = appendText(b, clip(u.name, 23), 24)
	b = le.AppendUint32(b, u.card)
	b = append(b, u.group)
	b = append(b, make([]byte, 8)...) // the group's time zones, none of its own
	return appendText(b, u.id, 24)
}

// parseUser reads what append writes; ok is false for another length.
func parseUser(b []byte) (u user, ok bool) {
	if len(b) != 28 && len(b) != 72 {
		return user{}, false
	}
	u.uid, u.priv = le.Uint16(b), b[2]
	if len(b) == 28 {
		u.password, u.name, u.card, u.group = text(b[3:8]), text(b[8:16]), le.Uint32(b[16:]), b[21]
		u.id = strconv.FormatUint(uint64(le.Uint32(b[24:])), 10)
		return u, u.uid != 0
	}
	u.password, u.name, u.card, u.group, u.id = text(b[3:11]), text(b[11:35]), le.Uint32(b[35:]), b[39], text(b[48:72])
	return u, u.uid != 0 && u.id != ""
}

// clip cuts s to at most n bytes between two characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 { // inside a UTF-8 sequence
		n--
	}
	return s[:n]
}

// text is b up to its first NUL.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// entry is one punch on its way into the log and into events.
type entry struct {
	uid           uint16
	id            string
	time          civil
	verify, state byte
}

// append encodes e as a record of 16, 40 or 49 bytes.
func (e *entry) append(b []byte, size int) []byte {
	if size == 16 {
		b = le.AppendUint32(b, e.number())
		b = le.AppendUint32(b, e.time.pack())
		b = append(b, e.state, e.verify, 0, 0) // this order, unlike the longer ones
		return le.AppendUint32(b, 0)           // work code
	}
	b = le.AppendUint16(b, e.uid)
	b = appendText(b, e.id, 24)
	b = append(b, e.verify)
	b = le.AppendUint32(b, e.time.pack())
	b = append(b, e.state, 0, 0, 0, 0, 0xff, 0, 0, 0) // work code, then as captured
	if size == 49 {
		b = append(b, "\xff255\x00\x00\x00\x00\x00"...)
	}
	return b
}

func (e *entry) number() uint32 {
	n, _ := strconv.ParseUint(e.id, 10, 32)
	return uint32(n)
}

// parseEntry reads a record of the terminal's own log.
func parseEntry(b []byte) entry {
	if len(b) == 16 {
		return entry{id: strconv.FormatUint(uint64(le.Uint32(b)), 10), time: unpack(le.Uint32(b[4:])), state: b[8], verify: b[9]}
	}
	return entry{uid: le.Uint16(b), id: text(b[2:26]), verify: b[26], time: unpack(le.Uint32(b[27:])), state: b[31]}
}

// appendEvent encodes e as the data of an attendance event of the given length.
func (e *entry) appendEvent(b []byte, size int) []byte {
	end := len(b) + size
	switch size {
	case 10, 14:
		b = le.AppendUint16(b, e.uid)
	case 12:
		b = le.AppendUint32(b, e.number())
	default:
		b = appendText(b, e.id, 24)
	}
	b = append(b, e.verify, e.state)
	b = e.time.appendSix(b)
	return append(b, make([]byte, end-len(b))...)
}

// firstRecord is where a made-up log begins; it covers the year that follows.
var firstRecord = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// makeLog is n records in ascending order, the same each time for the same generation.
func makeLog(n, size int, users []user, generation int) []byte {
	span := int64(365 * 24 * time.Hour / time.Second)
	b := make([]byte, 0, n*size)
	e := entry{uid: 1, id: "1"}
	for i := range n {
		if len(users) > 0 {
			u := &users[(i*7919+generation)%len(users)]
			e.uid, e.id = u.uid, u.id
		}
		e.time = civilOf(firstRecord.Add(time.Duration(int64(i)*span/int64(n)+7*int64(generation)) * time.Second))
		e.verify = [...]byte{zkproto.VerifyFinger, zkproto.VerifyFinger, zkproto.VerifyFace, zkproto.VerifyPassword}[i%4]
		e.state = byte(i / max(1, len(users)) % 2)
		b = e.append(b, size)
	}
	return b
}

func civilOf(t time.Time) civil {
	return civil{t.Year(), int(t.Month()), t.Day(), t.Hour(), t.Minute(), t.Second()}
}

func (c civil) wall() gatepost.Wall {
	return gatepost.NewWall(c.year, c.month, c.day, c.hour, c.minute, c.second)
}

// parseWall reads "2006-01-02T15:04:05". A day up to 31 goes in any month: terminals hold such dates too.
func parseWall(w gatepost.Wall) (civil, error) {
	var c civil
	n, err := fmt.Sscanf(string(w), "%4d-%2d-%2dT%2d:%2d:%2d", &c.year, &c.month, &c.day, &c.hour, &c.minute, &c.second)
	if err != nil || n != 6 || c.wall() != w || c.year < 2000 || c.year > 2099 || c.month < 1 || c.month > 12 ||
		c.day < 1 || c.day > 31 || c.hour > 23 || c.minute > 59 || c.second > 59 {
		return civil{}, fmt.Errorf("time %q is not like 2006-01-02T15:04:05 within 2000 to 2099", w)
	}
	return c, nil
}
