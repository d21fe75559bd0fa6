-- In nginx: the cache that people write with lua_shared_dict, reading through to Redis. Values are plain text and need no
-- escaping; whoever could not be sure of that would have to do more. peers.py puts in the port.

local lifetime, pooled, patience = 3600, 1000, 5000

local key = ngx.var.uri:sub(#"/key/" + 1)
local cache = ngx.shared.cache
local value, from_cache = cache:get(key), "true"
if not value then
    local redis = require("nginx.redis"):new()
    redis:set_timeout(patience)
    local connected, problem = redis:connect("127.0.0.1", @REDIS@)
    if not connected then
        ngx.log(ngx.ERR, problem)
        return ngx.exit(503)
    end
    value, problem = redis:get(key)
    if not value then
        ngx.log(ngx.ERR, problem)
        return ngx.exit(502)
    elseif value == ngx.null then
        return ngx.exit(404)
    end
    redis:set_keepalive(60000, pooled)
    cache:set(key, value, lifetime)
    from_cache = "false"
end
local body = '{"value":"' .. value .. '","fromCache":' .. from_cache .. "}"
-- Otherwise it would come in chunks, which costs more.
ngx.header["Content-Length"] = #body
ngx.print(body)
