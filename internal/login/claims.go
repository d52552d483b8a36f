package login

import (
	"slices"
	"strings"
	"unicode"

	"github.com/tartarus-sandbox/tartarus/internal/tenant"
)

// role is the strongest role that the claims are worth, empty when none.
func (i *Issuer) role(claims map[string]any) (best tenant.Role) {
	for _, value := range texts(claims, i.cfg.RoleClaim) {
		if r, ok := i.cfg.Roles[value]; ok && (best == "" || r.Covers(best)) {
			best = r
		}
	}
	return best
}

// tenant is the one tenant that the claims name, empty when they name none or several: whose the sandboxes are must not be a guess.
func (i *Issuer) tenant(claims map[string]any) string {
	if i.cfg.TenantClaim == "" {
		return i.cfg.Tenant
	}
	var found []string
	for _, value := range texts(claims, i.cfg.TenantClaim) {
		name := value
		if len(i.cfg.Tenants) > 0 {
			name = i.cfg.Tenants[value]
		}
		if tenant.ValidName(name) && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	if len(found) != 1 {
		return ""
	}
	return found[0]
}

// texts are the values of a claim. A name with dots is first looked for as it is, because claims of an issuer's own are often URLs.
func texts(claims map[string]any, name string) []string {
	value, there := claims[name]
	for rest := name; !there; {
		head, tail, more := strings.Cut(rest, ".")
		inner, ok := claims[head].(map[string]any)
		if !more || !ok {
			return nil
		}
		claims, rest = inner, tail
		value, there = claims[rest]
	}
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, item := range v {
			if s, ok := item.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// validSubject holds what stands in audit records and histories to what can be told apart when it is printed. OpenID Connect Core 1.0, 2, has up to 255
// ASCII characters.
func validSubject(s string) bool {
	return s != "" && len(s) <= 255 && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// nameOf is what people call the holder. It is for reading: users of some issuers may choose it.
func nameOf(claims map[string]any) string {
	email, _ := claims["email"].(string)
	if claims["email_verified"] == false {
		email = ""
	}
	for _, name := range append([]string{email}, append(texts(claims, "preferred_username"), texts(claims, "name")...)...) {
		name = strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return -1
			}
			return r
		}, name)
		const longest = 128 // bytes, as of the names of keys
		if name = strings.ToValidUTF8(name[:min(len(name), longest)], ""); name != "" {
			return name
		}
	}
	return ""
}
