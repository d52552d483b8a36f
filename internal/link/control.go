package link

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/typhon"
)

// The arguments and answers of the calls to a replica.
type (
	leaseArgs struct {
		Max int           `json:"max"`
		TTL time.Duration `json:"ttl"`
	}
	leaseAnswer struct {
		Leases []acheron.Lease `json:"leases"`
		// Waited is how long the replica had the question, and Left for how long each lease may be trusted at the moment of the
		// answer. Both are spans of one clock, so that the two sides need not agree on the time.
		Waited time.Duration   `json:"waited"`
		Left   []time.Duration `json:"left"`
	}
	renewArgs struct {
		Lease acheron.Lease `json:"lease"`
		TTL   time.Duration `json:"ttl"`
	}
	completeArgs struct {
		Lease  acheron.Lease `json:"lease"`
		Result []byte        `json:"result"`
	}
	failArgs struct {
		Lease  acheron.Lease `json:"lease"`
		Reason string        `json:"reason"`
		Retry  bool          `json:"retry,omitempty"`
	}
	reportArgs struct {
		Sandboxes []tartarus.Sandbox `json:"sandboxes"`
	}
	reportAnswer struct {
		// Disowned are the sandboxes that live on another node by now; this one must let go of them.
		Disowned []string `json:"disowned,omitempty"`
	}
	heartbeatArgs struct {
		Node hades.Node    `json:"node"`
		TTL  time.Duration `json:"ttl"`
	}
	joinArgs struct {
		Token   string `json:"token"`
		Node    string `json:"node"`
		Request []byte `json:"request"` // certificate request, DER
	}
	strikeArgs struct {
		Strike typhon.Strike `json:"strike"`
	}
	strikeAnswer struct {
		Quarantine string `json:"quarantine,omitempty"` // why the sandbox has to go there
	}
	fillArgs struct {
		Sandbox string `json:"sandbox"`
		Value   string `json:"value"` // with placeholders
	}
	fillAnswer struct {
		Value string `json:"value"`
	}
	certificateArgs struct {
		Request []byte `json:"request"`
	}
	certificateAnswer struct {
		Certificate []byte `json:"certificate"` // DER
		Authority   []byte `json:"authority"`   // DER
	}
)

// methods is what a node may ask of this replica. Who asks is known from its certificate; nothing it says of itself counts.
func (h *Hub) methods() map[string]method {
	return map[string]method{
		"hello":       asNode(h.hello),
		"lease":       member(h, h.lease),
		"renew":       member(h, h.renew),
		"complete":    member(h, h.complete),
		"fail":        member(h, h.fail),
		"report":      member(h, h.report),
		"heartbeat":   member(h, h.heartbeat),
		"fill":        member(h, h.fill),
		"strike":      member(h, h.strike),
		"certificate": member(h, h.certificate),
	}
}

// asNode gives a method the session it was called over.
func asNode[In any](f func(context.Context, *session, In) (any, error)) method {
	return typed(func(ctx context.Context, in In) (any, error) {
		s := sessionOf(ctx)
		if s == nil {
			return nil, tartarus.Errorf(tartarus.Forbidden, "this is for nodes with a session")
		}
		return f(ctx, s, in)
	})
}

// member is asNode for sessions that have said hello and that no newer one has replaced.
func member[In any](h *Hub, f func(context.Context, *session, In) (any, error)) method {
	return asNode(func(ctx context.Context, s *session, in In) (any, error) {
		h.mu.Lock()
		current := h.sessions[s.peer] == s
		h.mu.Unlock()
		if !current {
			return nil, tartarus.Errorf(tartarus.Unavailable, "the session of node %s is not open", s.peer)
		}
		return f(ctx, s, in)
	})
}

// hello opens a session, or says why not.
func (h *Hub) hello(ctx context.Context, s *session, in hello) (any, error) {
	if err := accepts(h.cfg.revision, in.Revision, in.Version); err != nil {
		h.log.Warn("node turned away", "node", s.peer, "error", err)
		return nil, err
	}
	if err := h.banned(ctx, s.peer, s.born); err != nil {
		h.log.Warn("node turned away", "node", s.peer, "error", err)
		return nil, err
	}
	h.mu.Lock()
	old := h.sessions[s.peer]
	s.addr = in.Address
	h.sessions[s.peer] = s
	h.mu.Unlock()
	if old != nil {
		old.close()
	}
	h.log.Info("session of a node", "node", s.peer, "version", in.Version, "listener", in.Address)
	return welcome{Revision: h.cfg.revision, Version: h.cfg.Version, Replica: h.cfg.Replica, news: *h.news.Load()}, nil
}

// Ban shuts a node out that an operator has removed: certificates made before now are refused, and its session here ends. The node may
// join again with a new token.
func (h *Hub) Ban(ctx context.Context, node string) error {
	now, err := time.Now().UTC().MarshalText()
	if err != nil {
		return err
	}
	if err := h.cfg.Vault.Set(ctx, "banned/"+node, now, NodeLife+24*time.Hour); err != nil {
		return err
	}
	h.mu.Lock()
	s := h.sessions[node]
	delete(h.sessions, node)
	h.mu.Unlock()
	if s != nil {
		s.close()
	}
	return nil
}

// banned reports whether a certificate was made before its node was removed. While the vault is away nobody is shut out: a removed
// node can do no more than report sandboxes of its own.
func (h *Hub) banned(ctx context.Context, node string, born time.Time) error {
	raw, err := h.cfg.Vault.Get(ctx, "banned/"+node)
	if err != nil {
		return nil
	}
	var since time.Time
	if since.UnmarshalText(raw) == nil && born.Add(clockSkew).Before(since) {
		return tartarus.Errorf(tartarus.Forbidden, "node %s was removed from the fleet; a new join token lets it in again", node)
	}
	return nil
}

// holds checks that a lease was handed to the node that shows it.
func (h *Hub) holds(s *session, l acheron.Lease) error {
	a, err := h.authority()
	if err != nil {
		return err
	}
	if !hmac.Equal(l.Proof, a.ticket(s.peer, l)) {
		return tartarus.Errorf(tartarus.Forbidden, "node %s shows a lease of job %s that it was never given", s.peer, l.Job.ID)
	}
	return nil
}

func (h *Hub) lease(ctx context.Context, s *session, in leaseArgs) (any, error) {
	if in.Max < 1 || in.Max > 1000 || in.TTL < time.Second || in.TTL > time.Hour {
		return nil, tartarus.Errorf(tartarus.Invalid, "lease of %d jobs for %s", in.Max, in.TTL)
	}
	a, err := h.authority()
	if err != nil {
		return nil, err
	}
	// A poll ends before the node's own patience, with nothing.
	began := time.Now()
	poll, cancel := context.WithTimeout(ctx, leasePoll)
	defer cancel()
	leases, err := h.cfg.Queue.Lease(poll, s.peer, in.Max, in.TTL)
	if err != nil && poll.Err() == nil {
		return nil, err
	}
	leases = slices.DeleteFunc(leases, func(l acheron.Lease) bool { return h.elsewhere(ctx, s.peer, l) })
	now := time.Now()
	out := leaseAnswer{Leases: leases, Waited: now.Sub(began), Left: make([]time.Duration, len(leases))}
	for i, l := range leases {
		out.Leases[i].Proof, out.Left[i] = a.ticket(s.peer, l), l.Until.Sub(now)
	}
	return out, nil
}

// elsewhere reports whether a job is about a sandbox that lives on another node by now, and ends it: a node that was away must not bring back what was
// taken from it meanwhile. While the registry does not say, the node gets its job.
func (h *Hub) elsewhere(ctx context.Context, node string, l acheron.Lease) bool {
	var r tartarus.Resume
	if l.Job.Kind != acheron.Resume || json.Unmarshal(l.Job.Payload, &r) != nil {
		return false
	}
	sb, err := h.cfg.Registry.Sandbox(ctx, hades.AnyTenant, r.ID)
	if err != nil || sb.Node == node {
		return false
	}
	why := tartarus.Errorf(tartarus.Conflict, "sandbox %s lives on node %s by now", r.ID, sb.Node)
	if err := h.cfg.Queue.Fail(ctx, l, acheron.Reason(why), false); err != nil {
		h.log.Warn("job of a sandbox that lives elsewhere not ended", "node", node, "sandbox", r.ID, "error", err)
	}
	return true
}

func (h *Hub) renew(ctx context.Context, s *session, in renewArgs) (any, error) {
	if err := h.holds(s, in.Lease); err != nil {
		return nil, err
	}
	if in.TTL < time.Second || in.TTL > time.Hour {
		return nil, tartarus.Errorf(tartarus.Invalid, "lease for %s", in.TTL)
	}
	return nil, h.cfg.Queue.Renew(ctx, in.Lease, in.TTL)
}

// complete ends a job. A node that did not get the answer says it again, perhaps to another replica: what has been done
// under the same token is then no conflict.
func (h *Hub) complete(ctx context.Context, s *session, in completeArgs) (any, error) {
	if err := h.holds(s, in.Lease); err != nil {
		return nil, err
	}
	err := h.cfg.Queue.Complete(ctx, in.Lease, in.Result)
	if tartarus.Is(err, tartarus.Conflict) {
		if j, jobErr := h.cfg.Queue.Job(ctx, in.Lease.Job.ID); jobErr == nil && j.State == acheron.Done && j.Token == in.Lease.Token {
			return nil, nil
		}
	}
	return nil, err
}

func (h *Hub) fail(ctx context.Context, s *session, in failArgs) (any, error) {
	if err := h.holds(s, in.Lease); err != nil {
		return nil, err
	}
	return nil, h.cfg.Queue.Fail(ctx, in.Lease, in.Reason, in.Retry)
}

// report takes what a node says of its sandboxes. Those that the registry has on another node are not the caller's to speak of.
func (h *Hub) report(ctx context.Context, s *session, in reportArgs) (any, error) {
	keep, back := make([]bool, len(in.Sandboxes)), make([]bool, len(in.Sandboxes))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(64)
	for i, sb := range in.Sandboxes {
		if sb.Node != s.peer {
			return nil, tartarus.Errorf(tartarus.Forbidden, "node %s reports sandbox %s of node %q", s.peer, sb.ID, sb.Node)
		}
		g.Go(func() error {
			stored, err := h.cfg.Registry.Sandbox(gctx, hades.AnyTenant, sb.ID)
			switch {
			case err == nil:
				keep[i] = stored.Node == s.peer && stored.Tenant == sb.Tenant
				back[i] = keep[i] && stored.Reason == tartarus.ReasonNodeLost && !sb.Phase.Ended()
			case tartarus.Is(err, tartarus.NotFound):
				keep[i] = true // entered by this report, or the registry has lost it
			default:
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var out reportAnswer
	var mine []tartarus.Sandbox
	for i, sb := range in.Sandboxes {
		if keep[i] {
			mine = append(mine, sb)
			h.cfg.Changed(sb)
			if back[i] {
				h.cfg.Returned(sb)
			}
		} else {
			out.Disowned = append(out.Disowned, sb.ID)
		}
	}
	return out, h.direct.Report(ctx, mine...)
}

func (h *Hub) heartbeat(ctx context.Context, s *session, in heartbeatArgs) (any, error) {
	if in.Node.Name != s.peer || in.TTL < time.Second || in.TTL > time.Hour {
		return nil, tartarus.Errorf(tartarus.Forbidden, "node %s sends the heartbeat of %q", s.peer, in.Node.Name)
	}
	in.Node.Address = s.addr
	return *h.news.Load(), h.cfg.Registry.PutNode(ctx, in.Node, in.TTL)
}

// fill gives a node what one header of one of its sandboxes says. It has to be a header that the sandbox really has: a node learns no secret
// that none of its sandboxes was given a use of.
func (h *Hub) fill(ctx context.Context, s *session, in fillArgs) (any, error) {
	if h.cfg.Fill == nil {
		return nil, tartarus.Errorf(tartarus.Unsupported, "this replica has no secrets for the headers of requests")
	}
	sb, err := h.cfg.Registry.Sandbox(ctx, hades.AnyTenant, in.Sandbox)
	if err != nil {
		return nil, err
	}
	if sb.Node != s.peer || !has(sb.Network, in.Value) {
		return nil, tartarus.Errorf(tartarus.Forbidden, "sandbox %.40s on node %s has no such header", in.Sandbox, s.peer)
	}
	value, err := h.cfg.Fill(ctx, sb, in.Value)
	if err != nil {
		return nil, err
	}
	return fillAnswer{value}, nil
}

// strike counts what a node saw one of its sandboxes do. Whose that is, the registry knows better than the node.
func (h *Hub) strike(ctx context.Context, s *session, in strikeArgs) (any, error) {
	sb, err := h.cfg.Registry.Sandbox(ctx, hades.AnyTenant, in.Strike.Sandbox)
	if err != nil {
		return nil, err
	}
	if sb.Node != s.peer {
		return nil, tartarus.Errorf(tartarus.Forbidden, "sandbox %.40s is not on node %s", in.Strike.Sandbox, s.peer)
	}
	if h.cfg.Strike == nil {
		return strikeAnswer{}, nil
	}
	in.Strike.Tenant, in.Strike.TemplateID = sb.Tenant, sb.TemplateID
	why, err := h.cfg.Strike(ctx, in.Strike)
	return strikeAnswer{why}, err
}

// has reports whether a header of this value is put into any request.
func has(n tartarus.Network, value string) bool {
	for _, headers := range n.Transforms {
		for _, v := range headers {
			if v == value {
				return true
			}
		}
	}
	return false
}

// certificate renews a node's certificate for as long as it is a member.
func (h *Hub) certificate(ctx context.Context, s *session, in certificateArgs) (any, error) {
	if err := h.banned(ctx, s.peer, s.born); err != nil {
		return nil, err
	}
	return h.issue(s.peer, in.Request)
}

func (h *Hub) issue(node string, request []byte) (any, error) {
	a, err := h.authority()
	if err != nil {
		return nil, err
	}
	der, err := a.sign(node, request, time.Now())
	if err != nil {
		return nil, err
	}
	return certificateAnswer{Certificate: der, Authority: a.cert.Raw}, nil
}

// join lets a node in that has a token. A token is good for one node, once; a node that lost the answer needs another.
func (h *Hub) join(ctx context.Context, in joinArgs) (any, error) {
	a, err := h.authority()
	if err != nil {
		return nil, err
	}
	if !nodeName.MatchString(in.Node) {
		return nil, tartarus.Errorf(tartarus.Invalid, "%.70q cannot be the name of a node", in.Node)
	}
	c, err := a.checkToken(in.Token, in.Node, time.Now())
	if err != nil {
		h.log.Warn("join refused", "node", in.Node, "error", err)
		return nil, err
	}
	if c.Node == "" {
		if err := h.free(ctx, in.Node); err != nil {
			return nil, err
		}
	}
	spent := "spent/" + base64.RawURLEncoding.EncodeToString([]byte(c.Nonce))
	err = h.cfg.Vault.Create(ctx, spent, []byte(in.Node), MaxTokenLife+clockSkew)
	if tartarus.Is(err, tartarus.Conflict) {
		h.log.Warn("join refused: token used twice", "node", in.Node)
		return nil, tartarus.Errorf(tartarus.Unauthenticated, "the join token was used before; `tartarus node token` makes a new one")
	}
	if err != nil {
		return nil, err
	}
	h.log.Info("node joins", "node", in.Node)
	return h.issue(in.Node, in.Request)
}

// free reports whether a name may be taken with a token that names nobody: nobody who lives has it.
func (h *Hub) free(ctx context.Context, name string) error {
	nodes, err := h.cfg.Registry.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name == name && n.Live(time.Now()) {
			return tartarus.Errorf(tartarus.Conflict, "a node %s is in the fleet and alive; `tartarus node token --node %s` makes a token to replace it", name, name)
		}
	}
	return nil
}
