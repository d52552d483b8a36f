package snapshot

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// DefaultTag is what a name without a tag means.
const DefaultTag = "default"

var (
	goodName = regexp.MustCompile(`^[a-z0-9_-]{1,128}$`)
	goodTag  = regexp.MustCompile(`^[a-z0-9_.-]{1,128}$`)
)

// ParseName checks a name for a snapshot, with or without a tag, and returns it with one.
func ParseName(s string) (string, error) {
	name, tag, tagged := strings.Cut(s, ":")
	if !tagged {
		tag = DefaultTag
	}
	if !goodName.MatchString(name) || !goodTag.MatchString(tag) {
		return "", tartarus.Errorf(tartarus.Invalid, "%.80q is no name for a snapshot: a-z, 0-9, - and _, and after a colon perhaps a tag", s)
	}
	return name + ":" + tag, nil
}

// Rename gives a snapshot further names, which other snapshots of its tenant lose: a name means the newest that got it.
func (s *Store) Rename(_ context.Context, id string, names ...string) error {
	var tenant string
	err := s.change(id, func(m *Manifest) {
		tenant = m.Tenant
		for _, n := range names {
			if !slices.Contains(m.Names, n) {
				m.Names = append(m.Names, n)
			}
		}
	})
	if err != nil {
		return err
	}
	s.copyAgain(id)
	for _, other := range s.List(Filter{Tenant: tenant}) {
		has := slices.ContainsFunc(other.Names, func(n string) bool { return slices.Contains(names, n) })
		if other.ID == id || !has {
			continue
		}
		err := s.change(other.ID, func(m *Manifest) {
			m.Names = slices.DeleteFunc(m.Names, func(n string) bool { return slices.Contains(names, n) })
		})
		if err != nil && !tartarus.Is(err, tartarus.NotFound) {
			return err
		}
		s.copyAgain(other.ID)
	}
	return nil
}

// copyAgain has the copy of a manifest replaced.
func (s *Store) copyAgain(id string) {
	s.note(id, func(p *Progress) { p.State = "" })
	s.want(id)
}
