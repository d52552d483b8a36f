-- The position counts the jobs that are handed out before this one: of each tenant in the round as many as have their turn first.
local id = ARGV[1]
local j = current(id)
if not j then return {'absent'} end
local fields = call('HGETALL', job_key(id))
if j.state ~= 'waiting' then return {'ok', fields, 0} end
local node, tenant = j.node, j.tenant
local turn = call('ZCOUNT', wait_key(node, tenant), '-inf', '(' .. j.seq)
local position, before = turn + 1, true
for _, other in ipairs(call('LRANGE', round_key(node), 0, -1)) do
  if other == tenant then
    before = false
  else
    position = position + math.min(call('ZCARD', wait_key(node, other)), before and turn + 1 or turn)
  end
end
return {'ok', fields, position}
