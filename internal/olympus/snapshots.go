package olympus

import (
	"cmp"
	"context"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
	"github.com/tartarus-sandbox/tartarus/internal/judges"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

// Snapshotter is a Node that can take snapshots of what runs. All methods may be called concurrently.
type Snapshotter interface {
	// Snapshot takes one of a running sandbox, which goes on. One that is not running is tartarus.Conflict; one whose agent does not
	// answer is tartarus.Unavailable. Unless it is for clones made at once, it is durable when Snapshot returns.
	Snapshot(ctx context.Context, id string, how tartarus.SnapshotHow) (tartarus.Snapshot, error)

	// Snapshots lists those of a tenant that the node has, and those in the object store that it could fetch; the latter have no Node.
	Snapshots(ctx context.Context, q tartarus.SnapshotQuery) ([]tartarus.Snapshot, error)

	// RemoveSnapshot removes one from the node and from the object store. Sandboxes that were made from it live on. One that is in neither
	// is tartarus.NotFound.
	RemoveSnapshot(ctx context.Context, id string) error

	// VerifySnapshot reads all of one that the node has and compares it with its digests; damaged is tartarus.Corrupt, and says what.
	VerifySnapshot(ctx context.Context, id string) (tartarus.Snapshot, error)
}

// found is a snapshot with the nodes that have it.
type found struct {
	tartarus.Snapshot
	nodes []string
}

// asksAtOnce bounds how many nodes are asked at the same time.
const asksAtOnce = 32

// snapshots asks all nodes, which alone know what they have, and the object store through them. A node that does not answer is left out: what
// it has cannot be used meanwhile. The newest come first.
func (s *Server) snapshots(ctx context.Context, q tartarus.SnapshotQuery) ([]found, error) {
	now := time.Now()
	list, err := s.roster.List(ctx, now)
	if err != nil {
		return nil, err
	}
	var (
		mu  sync.Mutex
		all = map[string]*found{}
		g   errgroup.Group
	)
	g.SetLimit(asksAtOnce)
	for _, n := range list.Nodes {
		if !n.Live(now) {
			continue
		}
		g.Go(func() error {
			list, err := s.snapshotsOn(ctx, n.Name, q)
			if err != nil {
				s.log.Warn("node not asked for snapshots", "node", n.Name, "error", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			for _, one := range list {
				if one.Tenant == q.Tenant {
					merge(all, one)
				}
			}
			return nil
		})
	}
	_ = g.Wait()
	out := make([]found, 0, len(all))
	for _, one := range all {
		out = append(out, *one)
	}
	slices.SortFunc(out, func(a, b found) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), strings.Compare(a.ID, b.ID))
	})
	return out, ctx.Err()
}

// merge adds what one node says of a snapshot to what others have said.
func merge(all map[string]*found, one tartarus.Snapshot) {
	f, known := all[one.ID]
	if !known {
		f = &found{Snapshot: one}
		all[one.ID] = f
	}
	if one.Node == "" {
		f.Copied = true
		return
	}
	if f.Node == "" {
		one.Copied = one.Copied || f.Copied
		f.Snapshot = one
	}
	f.nodes = append(f.nodes, one.Node)
}

// snapshotsOn asks one node; one that takes none has none.
func (s *Server) snapshotsOn(ctx context.Context, name string, q tartarus.SnapshotQuery) (out []tartarus.Snapshot, err error) {
	defer s.survive()
	node, err := s.cfg.Fleet.Node(ctx, name)
	if err != nil {
		return nil, err
	}
	if from, ok := node.(Snapshotter); ok {
		return from.Snapshots(ctx, q)
	}
	return nil, nil
}

// snapshotID is what clients call a snapshot: by its first full name, else by its id, always with a tag.
func snapshotID(s tartarus.Snapshot) string {
	if names := fullNames(s); len(names) > 0 {
		return names[0]
	}
	return s.ID + ":" + snapshot.DefaultTag
}

// fullNames are a snapshot's names with the tenant's.
func fullNames(s tartarus.Snapshot) []string {
	out := make([]string, len(s.Names))
	for i, n := range s.Names {
		out[i] = s.Tenant + "/" + n
	}
	return out
}

// findSnapshot finds a snapshot of the caller's tenant by what clients call it: tenant/name, name or id, each with or without a tag.
func (s *Server) findSnapshot(ctx context.Context, tenant, ref string) (found, error) {
	missing := tartarus.Errorf(tartarus.NotFound, "snapshot %.80q not found", ref)
	name := ref
	if ns, rest, ok := strings.Cut(ref, "/"); ok {
		if ns != tenant {
			return found{}, missing
		}
		name = rest
	}
	id, tag, tagged := strings.Cut(name, ":")
	queries := []tartarus.SnapshotQuery{}
	if tartarus.ValidID(id) && name == ref && (!tagged || tag == snapshot.DefaultTag) {
		queries = append(queries, tartarus.SnapshotQuery{Tenant: tenant, ID: id})
	}
	if full, err := snapshot.ParseName(name); err == nil {
		queries = append(queries, tartarus.SnapshotQuery{Tenant: tenant, Name: full})
	}
	for _, q := range queries {
		all, err := s.snapshots(ctx, q)
		if err != nil {
			return found{}, err
		}
		if len(all) > 0 {
			return all[0], nil
		}
	}
	return found{}, missing
}

// createSnapshot takes a snapshot of a running sandbox.
func (s *Server) createSnapshot(w http.ResponseWriter, r *http.Request, who caller) error {
	raw, err := readBody(w, r)
	if err != nil {
		return err
	}
	var in api.SnapshotRequest
	if err := decodeOptional(raw, &in, false); err != nil {
		return err
	}
	how := tartarus.SnapshotHow{Disk: isFalse(in.Memory)}
	if in.Name != "" {
		name, err := snapshot.ParseName(strings.TrimPrefix(in.Name, who.key.Tenant+"/"))
		if err != nil {
			return err
		}
		how.Names = []string{name}
	}
	sb, err := s.reachable(r, who)
	if err != nil {
		return err
	}
	node, err := s.snapshotter(r, sb)
	if err != nil {
		return err
	}
	undo, err := s.mayKeep(r.Context(), sb, who)
	if err != nil {
		return err
	}
	snap, err := node.Snapshot(r.Context(), sb.ID, how)
	if err != nil {
		undo()
		return err
	}
	writeJSON(w, http.StatusCreated, answerSnapshot(snap))
	return nil
}

// mayKeep asks whether the tenant's quota has room for another snapshot.
func (s *Server) mayKeep(ctx context.Context, sb tartarus.Sandbox, who caller) (undo func(), err error) {
	t, err := s.tenants.find(ctx, sb.Tenant, who.now)
	if err != nil || t.Quota.SnapshotMB == 0 {
		return func() {}, err
	}
	kept, err := s.snapshots(ctx, tartarus.SnapshotQuery{Tenant: sb.Tenant})
	if err != nil {
		return nil, err
	}
	bytes := int64(0)
	for _, one := range kept {
		bytes += one.Size
	}
	return s.held(ctx, judges.Snapshot, sb, bytes>>20, who.now)
}

// snapshotter is the node of a sandbox as one that takes snapshots.
func (s *Server) snapshotter(r *http.Request, sb tartarus.Sandbox) (Snapshotter, error) {
	node, err := s.onNode(r, sb)
	if err != nil {
		return nil, err
	}
	out, ok := node.(Snapshotter)
	if !ok {
		return nil, unsupported("snapshots")
	}
	return out, nil
}

// listSnapshots lists the tenant's snapshots, the newest first.
func (s *Server) listSnapshots(w http.ResponseWriter, r *http.Request, who caller) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	limit, err := number(q, "limit", 1, maxPage, maxPage)
	if err != nil {
		return err
	}
	var after snapshotCursor
	if token := q.Get("nextToken"); token != "" {
		if after, err = decodeSnapshotCursor(token); err != nil {
			return err
		}
	}
	want := tartarus.SnapshotQuery{Tenant: who.key.Tenant, SandboxID: q.Get("sandboxID"), Name: strings.TrimPrefix(q.Get("name"), who.key.Tenant+"/")}
	out := []api.Snapshot{}
	all, err := s.snapshots(r.Context(), want)
	if err != nil {
		return err
	}
	for _, one := range all {
		if !after.before(one.Snapshot) {
			continue
		}
		if len(out) == limit {
			w.Header().Set(api.HeaderNextToken, encodeSnapshotCursor(out[limit-1]))
			break
		}
		out = append(out, answerSnapshot(one.Snapshot))
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// snapshotCursor is where a page of snapshots ended.
type snapshotCursor struct {
	at time.Time
	id string
}

// before reports whether a snapshot comes after the end of the last page.
func (c snapshotCursor) before(s tartarus.Snapshot) bool {
	return c.id == "" || s.CreatedAt.Before(c.at) || s.CreatedAt.Equal(c.at) && s.ID > c.id
}

func encodeSnapshotCursor(s api.Snapshot) string {
	return base64.RawURLEncoding.EncodeToString([]byte(s.CreatedAt.UTC().Format(time.RFC3339Nano) + "__" + s.ID))
}

func decodeSnapshotCursor(token string) (snapshotCursor, error) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(token, "="))
	at, id, ok := strings.Cut(string(raw), "__")
	t, timeErr := time.Parse(time.RFC3339Nano, at)
	if err != nil || !ok || timeErr != nil || !tartarus.ValidID(id) {
		return snapshotCursor{}, tartarus.Errorf(tartarus.Invalid, "nextToken is none that this server gave")
	}
	return snapshotCursor{at: t, id: id}, nil
}

// pathRef is a name in a path. SDKs escape the slash and the colon in it.
func pathRef(r *http.Request, param string) string {
	raw := chi.URLParam(r, param)
	if ref, err := url.PathUnescape(raw); err == nil && !strings.ContainsFunc(ref, notInRef) && len(ref) <= maxTemplateRef {
		return ref
	}
	return ""
}

// inspectSnapshot describes one snapshot, with how far its copy is.
func (s *Server) inspectSnapshot(w http.ResponseWriter, r *http.Request, who caller) error {
	snap, err := s.findSnapshot(r.Context(), who.key.Tenant, pathRef(r, "snapshotID"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, answerSnapshot(snap.Snapshot))
	return nil
}

// verifySnapshot reads all of a snapshot and compares it with its digests.
func (s *Server) verifySnapshot(w http.ResponseWriter, r *http.Request, who caller) error {
	snap, err := s.findSnapshot(r.Context(), who.key.Tenant, pathRef(r, "snapshotID"))
	if err != nil {
		return err
	}
	if snap.Node == "" {
		return tartarus.Errorf(tartarus.Conflict, "no node has snapshot %s; it is compared with its digests when one fetches it", snap.ID)
	}
	node, err := s.holder(r.Context(), snap.Node)
	if err != nil {
		return err
	}
	whole, err := node.VerifySnapshot(r.Context(), snap.ID)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, answerSnapshot(whole))
	return nil
}

// holder is a node that has snapshots.
func (s *Server) holder(ctx context.Context, name string) (Snapshotter, error) {
	node, err := s.cfg.Fleet.Node(ctx, name)
	if err != nil {
		return nil, err
	}
	if out, ok := node.(Snapshotter); ok {
		return out, nil
	}
	return nil, unsupported("snapshots")
}

// deleteTemplate removes a snapshot by the name under which it serves as a template.
func (s *Server) deleteTemplate(w http.ResponseWriter, r *http.Request, who caller) error {
	snap, err := s.findSnapshot(r.Context(), who.key.Tenant, pathRef(r, "templateID"))
	if tartarus.Is(err, tartarus.NotFound) {
		return tartarus.Errorf(tartarus.NotFound, "there is no snapshot of this name; templates are removed on their machine (tartarus template rm)")
	}
	if err != nil {
		return err
	}
	if err := s.removeSnapshot(r.Context(), snap); err != nil {
		return err
	}
	noContent(w)
	return nil
}

// removeSnapshot removes a snapshot from every node that has it; one that only the object store has goes through any node.
func (s *Server) removeSnapshot(ctx context.Context, snap found) error {
	names := snap.nodes
	if len(names) == 0 {
		list, err := s.roster.List(ctx, time.Now())
		if err != nil {
			return err
		}
		for _, n := range list.Nodes {
			if n.Live(time.Now()) && len(names) == 0 {
				names = append(names, n.Name)
			}
		}
	}
	for _, name := range names {
		node, err := s.holder(ctx, name)
		if err != nil {
			return err
		}
		if err := node.RemoveSnapshot(ctx, snap.ID); err != nil && !tartarus.Is(err, tartarus.NotFound) {
			return err
		}
	}
	return nil
}

func answerSnapshot(s tartarus.Snapshot) api.Snapshot {
	names := fullNames(s)
	slices.Sort(names)
	return api.Snapshot{
		SnapshotID: snapshotID(s), Names: names, ID: s.ID, SandboxID: s.SandboxID, TemplateID: s.TemplateID, BuildID: s.BuildID, Memory: !s.Disk,
		Runtime: s.Runtime, RuntimeVersion: s.Version, CPUModel: s.CPU, Node: s.Node, CPUCount: s.Resources.VCPU, MemoryMB: s.Resources.MemoryMB,
		DiskSizeMB: s.Resources.DiskMB, SizeBytes: s.Size, StoredBytes: s.Stored, CreatedAt: s.CreatedAt.UTC(),
		Copy: api.CopyProgress{State: s.Progress.State, DoneBytes: s.Progress.Done, TotalBytes: s.Progress.Total, Error: s.Progress.Error},
	}
}
