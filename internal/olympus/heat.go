package olympus

import (
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/phlegethon"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

// mostPasts bounds the templates whose past is remembered, at about 100 bytes each.
const mostPasts = 10_000

// pasts is what the sandboxes of each template did lately, as far as this replica has seen it or heard of it from others.
type pasts struct {
	mu     sync.Mutex
	all    map[string]*phlegethon.Past    // by id of the template
	others map[string][]phlegethon.Lesson // likewise, from other replicas
	news   bool                           // something happened that the others have not been told
}

// arrive notes that a sandbox was asked for, and returns what is known of its template.
func (p *pasts) arrive(template string, now time.Time) phlegethon.Past {
	p.mu.Lock()
	defer p.mu.Unlock()
	past := p.of(template)
	past.Arrival.Arrive(now, "")
	p.news = true
	return past.With(p.others[template], now)
}

// peek returns what is known of a template.
func (p *pasts) peek(template string, now time.Time) phlegethon.Past {
	p.mu.Lock()
	defer p.mu.Unlock()
	var past phlegethon.Past
	if own, ok := p.all[template]; ok {
		past = *own
	}
	return past.With(p.others[template], now)
}

// end learns from a sandbox that has ended.
func (p *pasts) end(sb tartarus.Sandbox) {
	if sb.StartedAt.IsZero() || sb.EndedAt.IsZero() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.news = true
	p.of(sb.TemplateID).End(sb.CPU, sb.EndedAt.Sub(sb.StartedAt))
}

// of finds or makes the past of a template. The lock is held.
func (p *pasts) of(template string) *phlegethon.Past {
	past, ok := p.all[template]
	if !ok {
		if p.all == nil {
			p.all = map[string]*phlegethon.Past{}
		}
		for other := range p.all { // whichever: one that is in use is soon known again
			if len(p.all) < mostPasts {
				break
			}
			delete(p.all, other)
		}
		past = &phlegethon.Past{}
		p.all[template] = past
	}
	return past
}

// Observe is told of every sandbox that a node reports, so that the server learns what templates' sandboxes do.
func (s *Server) Observe(sb tartarus.Sandbox) {
	if sb.Phase.Ended() {
		s.pasts.end(sb)
	}
}

// Returned is told of every sandbox that its node reports again after it had been counted as lost with it.
func (s *Server) Returned(sb tartarus.Sandbox) {
	s.recorder.noticed("sandbox.returned", sb, map[string]string{"node": sb.Node, "phase": string(sb.Phase)})
	s.log.Warn("lost sandbox is back", "sandbox", sb.ID, "tenant", sb.Tenant, "node", sb.Node, "phase", sb.Phase)
}

// heat is how much work a sandbox is expected to make.
func (s *Server) heat(spec tartarus.Spec, past phlegethon.Past, bound themis.Heat) phlegethon.Heated {
	return s.cfg.Heat.Of(phlegethon.Work{
		Resources: spec.Resources, Lifetime: spec.Timeout, Past: past, Hint: phlegethon.Heat(spec.Metadata[phlegethon.MetaHeat]),
		Bound: phlegethon.Bound{Steps: bound.Hint, Hottest: phlegethon.Heat(bound.Hottest)},
	})
}
