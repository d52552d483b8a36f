package mounted

import (
	"path"
	"sync"

	"golang.org/x/sys/unix"
)

// nodes is what the kernel knows under numbers: which file of the volume each stands for.
type nodes struct {
	mu   sync.Mutex
	byID map[uint64]*node
	next uint64
}

// node is one file as the kernel knows it. It keeps its number when it is moved.
type node struct {
	id       uint64
	parent   *node // nil for the root, and for what is gone
	name     string
	children map[string]*node
	lookups  uint64
}

// rootID is the number of the root (FUSE_ROOT_ID).
const rootID = 1

func newNodes() *nodes {
	root := &node{id: rootID, children: map[string]*node{}, lookups: 1}
	return &nodes{byID: map[uint64]*node{rootID: root}, next: rootID}
}

// path is where a file is; ESTALE when it is gone.
func (n *nodes) path(id uint64) (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.byID[id]
	if x == nil {
		return "", unix.ESTALE
	}
	p := ""
	for ; x.id != rootID; x = x.parent {
		if x.parent == nil {
			return "", unix.ESTALE
		}
		p = path.Join(x.name, p)
	}
	return p, nil
}

// child is where a name in a folder is.
func (n *nodes) child(id uint64, name string) (string, error) {
	p, err := n.path(id)
	return path.Join(p, name), err
}

// found counts a lookup of a name and gives its number.
func (n *nodes) found(parent uint64, name string) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.byID[parent]
	if p == nil {
		return 0, unix.ESTALE
	}
	x := p.children[name]
	if x == nil {
		n.next++
		x = &node{id: n.next, parent: p, name: name, children: map[string]*node{}}
		p.children[name] = x
		n.byID[x.id] = x
	}
	x.lookups++
	return x.id, nil
}

// forget takes lookups back. What the kernel does not know any more is dropped.
func (n *nodes) forget(id, lookups uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.byID[id]
	if x == nil || id == rootID {
		return
	}
	x.lookups -= min(lookups, x.lookups)
	n.drop(x)
}

// drop removes a node that nobody knows and that leads to none. n.mu is held.
func (n *nodes) drop(x *node) {
	for x != nil && x.id != rootID && x.lookups == 0 && len(x.children) == 0 {
		above := x.parent
		delete(n.byID, x.id)
		x.detach()
		x = above
	}
}

func (x *node) detach() {
	if x.parent != nil && x.parent.children[x.name] == x {
		delete(x.parent.children, x.name)
	}
	x.parent = nil
}

// gone notes that a name leads to nothing any more.
func (n *nodes) gone(parent uint64, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.byID[parent]; p != nil {
		if x := p.children[name]; x != nil {
			x.detach()
			n.drop(x)
		}
	}
}

// moved notes that a name leads elsewhere now.
func (n *nodes) moved(from uint64, name string, to uint64, newName string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, b := n.byID[from], n.byID[to]
	if a == nil || b == nil {
		return
	}
	x := a.children[name]
	if over := b.children[newName]; over != nil && over != x {
		over.detach()
		n.drop(over)
	}
	if x != nil {
		x.detach()
		x.parent, x.name = b, newName
		b.children[newName] = x
	}
}
