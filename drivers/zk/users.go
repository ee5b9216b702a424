package zk

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"gatepost"
)

// A user, 28 bytes ("ZK6", black-and-white firmware) or 72 ("ZK8", colour screens):
//
//	    0     2      3          8                16      20    21      22        24
//	28: | uid | priv | password | name           | card  |  -  | group | zones   | id, number |
//	    0     2      3          11               35      39      40              48
//	72: | uid | priv | password | name           | card  | group | own zones     | id, text   |
const (
	userSmall = 28
	userLarge = 72
)

// user is a record of either size.
type user struct {
	uid  uint16
	priv byte
	id   string
	odd  bool // the id is not text as it stands
	name string
	card uint32
	grp  byte
	pass bool
}

func (e encoding) user(b []byte) user {
	u := user{uid: le.Uint16(b), priv: b[2], pass: b[3] != 0}
	if len(b) == userSmall {
		u.name, _ = e.text(field(b[8:16]))
		u.card = le.Uint32(b[16:])
		u.grp = b[21]
		u.id = strconv.FormatUint(uint64(le.Uint32(b[24:])), 10)
		return u
	}
	u.name, _ = e.text(field(b[11:35]))
	u.card = le.Uint32(b[35:])
	u.grp = b[39]
	u.id, u.odd = e.text(field(b[48:72]))
	return u
}

// plausible says whether b looks like a user of its length.
func plausibleUser(b []byte) bool {
	if le.Uint16(b) == 0 || b[2] > 15 {
		return false
	}
	if len(b) == userSmall {
		return le.Uint32(b[24:]) != 0
	}
	id := field(b[48:72])
	for _, c := range id {
		if c < ' ' || c == 0x7f {
			return false
		}
	}
	return len(id) > 0
}

// userSize finds the length of the records in a user data set, n of them by the terminal's own count (0: not known).
func userSize(b []byte, n int) (int, error) {
	if len(b) == 0 {
		return userLarge, nil
	}
	for _, size := range []int{userLarge, userSmall} {
		if n > 0 && len(b) == n*size {
			return size, nil
		}
	}
	large, small := len(b)%userLarge == 0, len(b)%userSmall == 0
	switch {
	case large && !small:
		return userLarge, nil
	case small && !large:
		return userSmall, nil
	}
	// Both fit, or neither (a cut set): count which reads better, the large form before the small.
	best, size := 0, 0
	for _, try := range []int{userLarge, userSmall} {
		good, seen := 0, 0
		for i := 0; i+try <= len(b) && seen < 100; i += try {
			if plausibleUser(b[i : i+try]) {
				good++
			}
			seen++
		}
		if seen > 0 && 100*good/seen > best && 100*good/seen >= 50 {
			best, size = 100*good/seen, try
		}
	}
	if size == 0 {
		return 0, &gatepost.Fault{
			Err:  fmt.Errorf("read the users: %d bytes are neither records of 72 nor of 28; they begin %x", len(b), b[:min(64, len(b))]),
			Hint: "set user_size if you know it, and send us this line",
		}
	}
	return size, nil
}

// maxUsers bounds the user data set, which is held whole: 400 000 users.
const maxUsers = 32 << 20

// readUsers downloads the user table.
func (s *session) readUsers(ctx context.Context) ([]user, error) {
	n, err := s.freeSizes(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.bulk.take(ctx, normal); err != nil {
		return nil, fmt.Errorf("%s: %w", users.what, err)
	}
	defer s.bulk.give()
	d, err := s.l.prepare(ctx, users)
	if err != nil {
		return nil, err
	}
	var b []byte
	if d.size > maxUsers {
		err = fmt.Errorf("%s: the terminal announces %d bytes, over the limit of %d", users.what, d.size, maxUsers)
	} else {
		err = d.read(ctx, 0, func(p []byte) error {
			b = append(b, p...)
			return nil
		})
	}
	d.close(ctx, err == nil)
	if err != nil {
		return nil, err
	}
	size := s.UserSize
	if size == 0 {
		if size, err = userSize(b, n["users"]); err != nil {
			return nil, err
		}
	}
	us := make([]user, 0, len(b)/size)
	for ; len(b) >= size; b = b[size:] {
		us = append(us, s.Encoding.user(b[:size]))
	}
	if len(b) > 0 {
		s.env.Log.Warn("users: bytes left over", "bytes", len(b))
	}
	s.users.fill(us, size)
	return us, nil
}

// Users lists the terminal's users.
func (s *session) Users(ctx context.Context) ([]gatepost.User, error) {
	us, err := s.readUsers(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]gatepost.User, len(us))
	for i, u := range us {
		list[i] = gatepost.User{
			ID:        u.id,
			Name:      u.name,
			Privilege: privilege(u.priv),
			Disabled:  u.priv&1 != 0,
			Group:     int(u.grp),
			Password:  u.pass,
			Index:     int(u.uid),
		}
		if u.card != 0 {
			list[i].Card = strconv.FormatUint(uint64(u.card), 10)
		}
	}
	return list, nil
}

// privilege is the word for a privilege byte.
func privilege(b byte) string {
	switch b &^ 1 {
	case 0:
		return "user"
	case 2:
		return "enroller"
	case 6:
		return "admin"
	case 14:
		return "super_admin"
	}
	return "other"
}

// userTable finds the user whom an event names by number only.
type userTable struct {
	mu      sync.Mutex // guards the following
	loaded  time.Time
	numeric bool              // ids are numbers by themselves (28-byte users)
	byUID   map[uint16]string // internal index -> id
	byNum   map[uint32]string // id as a number -> id as text; empty where two ids are the same number
}

// refill is the shortest time between two downloads of the users because an event named somebody unknown.
const refill = time.Minute

func (t *userTable) fill(us []user, size int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.loaded = time.Now()
	t.numeric = size == userSmall
	t.byUID = make(map[uint16]string, len(us))
	t.byNum = make(map[uint32]string, len(us))
	for _, u := range us {
		t.byUID[u.uid] = u.id
		if n, err := strconv.ParseUint(u.id, 10, 32); err == nil {
			if other, taken := t.byNum[uint32(n)]; taken && other != u.id {
				u.id = ""
			}
			t.byNum[uint32(n)] = u.id
		}
	}
}

// find looks by index or by number; fresh says that another download would come too soon.
func (t *userTable) find(n uint32, byIndex bool) (id string, fresh bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case byIndex:
		id = t.byUID[uint16(n)]
	case t.numeric:
		id = strconv.FormatUint(uint64(n), 10)
	default:
		id = t.byNum[n]
	}
	return id, !t.loaded.IsZero() && time.Since(t.loaded) < refill
}

// resolve finds the id that the terminal's log has for a number in an event; empty where it cannot be known. The table is
// downloaded when first needed, and again when somebody is missing in it.
func (s *session) resolve(ctx context.Context, n uint32, byIndex bool) (string, error) {
	id, fresh := s.users.find(n, byIndex)
	if id != "" || fresh {
		return id, nil
	}
	if _, err := s.readUsers(ctx); err != nil {
		if _, refused := errors.AsType[replyError](err); !refused {
			return "", err
		}
		s.users.fill(nil, 0) // not again for a while
	}
	id, _ = s.users.find(n, byIndex)
	return id, nil
}
