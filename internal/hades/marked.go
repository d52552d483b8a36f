package hades

import (
	"context"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// marks keeps what operators decided about nodes a value each, so that two decisions at once cannot undo one another:
//
//	mark/NODE/cordon       true or false
//	mark/NODE/label/NAME   = and the label's value, or - for a label that is taken away
type marks struct{ values Values }

// Values keeps small values by name.
type Values interface {
	// Set stores a value under a name whatever it had, for ttl, or for good when ttl is 0.
	Set(ctx context.Context, name string, value []byte, ttl time.Duration) error
	// List returns all values whose names begin with prefix, by name.
	List(ctx context.Context, prefix string) (map[string][]byte, error)
}

const markPrefix = "mark/"

// Cordon implements Marks.
func (m marks) Cordon(ctx context.Context, node string, on bool) error {
	value := "false"
	if on {
		value = "true"
	}
	return m.values.Set(ctx, markPrefix+node+"/cordon", []byte(value), 0)
}

// Label implements Marks.
func (m marks) Label(ctx context.Context, node string, set map[string]string, remove []string) error {
	for name, value := range set {
		if err := m.values.Set(ctx, markPrefix+node+"/label/"+name, []byte("="+value), 0); err != nil {
			return err
		}
	}
	for _, name := range remove {
		if err := m.values.Set(ctx, markPrefix+node+"/label/"+name, []byte("-"), 0); err != nil {
			return err
		}
	}
	return nil
}

// all returns the marks of all nodes that have any.
func (m marks) all(ctx context.Context) (map[string]Mark, error) {
	values, err := m.values.List(ctx, markPrefix)
	if err != nil {
		return nil, err
	}
	out := map[string]Mark{}
	for name, raw := range values {
		node, what, _ := strings.Cut(strings.TrimPrefix(name, markPrefix), "/")
		mark, value := out[node], string(raw)
		label, isLabel := strings.CutPrefix(what, "label/")
		switch {
		case what == "cordon":
			mark.Cordoned = value == "true"
		case isLabel && value == "-":
			mark.Removed = append(mark.Removed, label)
		case isLabel && strings.HasPrefix(value, "="):
			if mark.Labels == nil {
				mark.Labels = map[string]string{}
			}
			mark.Labels[label] = value[1:]
		default:
			return nil, tartarus.Errorf(tartarus.Corrupt, "read mark %s: %.40q means nothing", name, value)
		}
		out[node] = mark
	}
	return out, nil
}

// WithMarks makes a registry whose nodes are as operators want them, and keeps what operators decide in values.
func WithMarks(r Registry, values Values) (Registry, Marks) {
	m := marks{values}
	return marked{r, m}, m
}

// marked is a registry whose nodes are as operators want them.
type marked struct {
	Registry
	marks marks
}

// Nodes implements Registry.
func (r marked) Nodes(ctx context.Context) ([]Node, error) {
	nodes, err := r.Registry.Nodes(ctx)
	if err != nil || len(nodes) == 0 {
		return nodes, err
	}
	all, err := r.marks.all(ctx)
	if err != nil {
		return nil, err
	}
	for i, n := range nodes {
		if m, ok := all[n.Name]; ok {
			nodes[i] = n.Marked(m)
		}
	}
	return nodes, nil
}
