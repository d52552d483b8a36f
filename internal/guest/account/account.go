// Package account knows the users of the guest: it looks them up by name and acts in their place.
// Whatever a user may not do, the agent does not do for that user.
//
// The files /etc/passwd and /etc/group are read again whenever they change, so that users made
// inside the sandbox are known at once.
package account

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// User is one line of the passwd file, with the groups it is in.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Home   string
	Shell  string
	Groups []uint32 // supplementary groups, the primary one among them
}

// Book looks users and groups up. It is safe for concurrent use.
type Book struct {
	passwd table
	group  table
}

// NewBook makes a Book over the passwd and group files of the folder etc, normally /etc.
func NewBook(etc string) *Book {
	return &Book{
		passwd: table{path: filepath.Join(etc, "passwd"), fields: 7},
		group:  table{path: filepath.Join(etc, "group"), fields: 4},
	}
}

// Lookup finds a user by name. An unknown one is tartarus.Unauthenticated with the message that SDKs
// and their tests look for. Root is known even where there is no passwd file.
func (b *Book) Lookup(name string) (User, error) {
	rows, err := b.passwd.read()
	if err != nil && !os.IsNotExist(err) {
		return User{}, err
	}
	for _, r := range rows {
		if r[0] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(r[2], 10, 32)
		gid, err2 := strconv.ParseUint(r[3], 10, 32)
		if err1 != nil || err2 != nil {
			break
		}
		u := User{Name: name, UID: uint32(uid), GID: uint32(gid), Home: r[5], Shell: r[6]}
		if u.Home == "" {
			u.Home = "/"
		}
		u.Groups, err = b.groupsOf(name, u.GID)
		return u, err
	}
	if name == "root" {
		return User{Name: "root", Home: "/root", Groups: []uint32{0}}, nil
	}
	return User{}, tartarus.Errorf(tartarus.Unauthenticated, "invalid username: '%s'", name)
}

// Exists reports whether Lookup would find name.
func (b *Book) Exists(name string) bool {
	_, err := b.Lookup(name)
	return err == nil
}

func (b *Book) groupsOf(name string, primary uint32) ([]uint32, error) {
	groups := []uint32{primary}
	rows, err := b.group.read()
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, r := range rows {
		gid, err := strconv.ParseUint(r[2], 10, 32)
		if err != nil || uint32(gid) == primary {
			continue
		}
		if slices.Contains(strings.Split(r[3], ","), name) {
			groups = append(groups, uint32(gid))
		}
	}
	return groups, nil
}

// UserName and GroupName give the name of an id, or the id in digits where there is none.
func (b *Book) UserName(uid uint32) string { return b.passwd.nameOf(uid) }

// GroupName is documented at UserName.
func (b *Book) GroupName(gid uint32) string { return b.group.nameOf(gid) }

// Resolve makes an absolute, clean path of what a client sent: "~" is the user's home, a relative path
// starts there, and an empty one is workdir, or the home where workdir is empty too.
func (u User) Resolve(path, workdir string) (string, error) {
	if path == "" {
		path = workdir
	}
	switch {
	case strings.ContainsRune(path, 0):
		return "", tartarus.Errorf(tartarus.Invalid, "path contains a zero byte")
	case path == "~":
		return u.Home, nil
	case strings.HasPrefix(path, "~/"):
		path = filepath.Join(u.Home, path[2:])
	case strings.HasPrefix(path, "~"):
		return "", tartarus.Errorf(tartarus.Invalid, "path '%s' names another user's home, which is not expanded", path)
	case !filepath.IsAbs(path):
		path = filepath.Join(u.Home, path)
	}
	return filepath.Clean(path), nil
}
