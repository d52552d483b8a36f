// Package settings holds what the host told the agent: token, environment, default user and folder.
// A reader gets one whole version of it, never half of a change.
package settings

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/account"
)

// Settings is one version. It is never changed once stored, its map included.
type Settings struct {
	Env        map[string]string // given to every process that clients start
	Token      string            // empty: no token is asked for
	User       string            // default user; empty lets the agent choose
	Workdir    string            // default folder; empty means the user's home
	SandboxID  string
	TemplateID string
}

// HasToken compares in constant time, and hashes first so that the length does not show either.
func (s *Settings) HasToken(token string) bool {
	a, b := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(s.Token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// Store keeps the present version. The zero Store is not usable; see New.
type Store struct {
	book *account.Book
	mu   sync.Mutex // serialises writers
	now  atomic.Pointer[Settings]
}

// New makes a Store with empty Settings.
func New(book *account.Book) *Store {
	s := &Store{book: book}
	s.now.Store(&Settings{})
	return s
}

// Book is where the users are looked up.
func (s *Store) Book() *account.Book { return s.book }

// Load returns the present version.
func (s *Store) Load() *Settings { return s.now.Load() }

// Update stores what change makes of a copy. change must replace the map, not write into it.
func (s *Store) Update(change func(*Settings)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.now.Load()
	change(&next)
	s.now.Store(&next)
}

// User finds the user a client asked for by name; an empty name is the default user: the one set by
// the host, else "user" where there is one, else root.
func (s *Store) User(name string) (account.User, error) {
	if name == "" {
		name = s.Load().User
	}
	if name != "" {
		return s.book.Lookup(name)
	}
	if u, err := s.book.Lookup("user"); err == nil || !tartarus.Is(err, tartarus.Unauthenticated) {
		return u, err
	}
	return s.book.Lookup("root")
}

// Caller finds the user named by the Basic credentials of a request. The password means nothing: the
// access token is what authenticates.
func (s *Store) Caller(h http.Header) (account.User, error) {
	if h.Get("Authorization") == "" {
		return s.User("")
	}
	name, _, ok := (&http.Request{Header: h}).BasicAuth()
	if !ok {
		return account.User{}, tartarus.Errorf(tartarus.Unauthenticated, "invalid authorization header: it must be Basic with a user name")
	}
	return s.User(name)
}
