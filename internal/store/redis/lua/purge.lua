local state, before, most = ARGV[1], ARGV[2], ARGV[3]
local set = P .. 'state:' .. state
local gone = call('ZRANGEBYSCORE', set, '-inf', '(' .. before, 'LIMIT', 0, most)
for _, id in ipairs(gone) do
  local j = call('HMGET', job_key(id), 'tenant', 'key')
  if j[2] and j[2] ~= '' then call('DEL', idem_key(j[1], j[2])) end
  call('ZREM', set, id)
  call('DEL', job_key(id))
end
return {#gone}
