package hades

import (
	"context"
	"maps"
)

// Mark is what operators decided about a node. It outlives what the node says of itself.
type Mark struct {
	Cordoned bool
	Labels   map[string]string
	Removed  []string // labels that the node has by itself and shall not
}

// Marks keeps what operators decided about nodes, also about some that are not there. All methods may be called concurrently.
type Marks interface {
	// Cordon says whether a node takes nothing new.
	Cordon(ctx context.Context, node string, on bool) error
	// Label sets labels of a node and takes others away.
	Label(ctx context.Context, node string, set map[string]string, remove []string) error
}

// Marked is n as operators want it.
func (n Node) Marked(m Mark) Node {
	n.Cordoned = n.Cordoned || m.Cordoned
	if len(m.Labels)+len(m.Removed) > 0 {
		labels := map[string]string{}
		maps.Copy(labels, n.Labels)
		maps.Copy(labels, m.Labels)
		for _, name := range m.Removed {
			delete(labels, name)
		}
		n.Labels = labels
	}
	return n
}
